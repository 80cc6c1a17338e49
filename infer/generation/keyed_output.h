// Results in a file, each with a key of what it came of, so that an interrupted run goes on with its own and with no
// other's.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "infer/generation/answer_file.h"
#include "infer/generation/line_reader.h"

namespace kvloom {

class KeyedOutput {
 public:
  // `shared` says all that results depend on beside their lines of input. Throws as AnswerFile does.
  KeyedOutput(const std::filesystem::path& path, AnswerStart start, std::string_view shared);

  // Goes over the results that are there; `next` gives the lines that they must be of. Returns how many there are.
  // Throws InputError, naming the line, for results of other lines or of something else.
  std::int64_t skip_known(const std::function<std::optional<InputLine>()>& next);
  // The line's result is to come, after those of the lines before it.
  void expect(const InputLine& line) { expected_.push_back(key_of(line)); }
  // Adds the key to the result of the first expected line, and writes it.
  void add(nlohmann::ordered_json result);
  // All results have reached the disk when this returns.
  void finish() { file_.finish(); }

 private:
  std::string key_of(const InputLine& line) const;
  void check_known(const std::string& known, std::int64_t index, const std::optional<InputLine>& line) const;

  std::string path_;
  std::string shared_;  // its checksum
  AnswerFile file_;
  std::deque<std::string> expected_;
};

}  // namespace kvloom
