// Standard input, pipes and devices as files: a text is read more than once.
#pragma once

#include <filesystem>
#include <string>

namespace kvloom {

// A copy of an input that can be read once, under a hidden name beside the output; it goes with this object.
class SpooledInput {
 public:
  // "-" is standard input. Throws InputError when the input cannot be read, Error when there is no room for it.
  SpooledInput(const std::string& input, const std::filesystem::path& output, std::size_t number);
  ~SpooledInput();
  SpooledInput(const SpooledInput&) = delete;
  SpooledInput& operator=(const SpooledInput&) = delete;

  const std::filesystem::path& path() const { return path_; }

  // Whether an input of that name must be copied first.
  static bool is_needed(const std::string& input);

 private:
  std::filesystem::path path_;
};

}  // namespace kvloom
