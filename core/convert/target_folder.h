// A folder that appears under its name as a whole.
#pragma once

#include <filesystem>

namespace kvloom {

// Throws InputError when something that is not an empty folder stands at `path`.
void refuse_existing_target(const std::filesystem::path& path);

class TargetFolder {
 public:
  // Clears what an interrupted conversion left beside `path`, makes the folder to write into. Throws as above.
  explicit TargetFolder(std::filesystem::path path);
  // Removes what was written, unless it was committed.
  ~TargetFolder();
  TargetFolder(const TargetFolder&) = delete;
  TargetFolder& operator=(const TargetFolder&) = delete;

  // Where to write until `commit`: a hidden sibling.
  const std::filesystem::path& partial() const { return partial_; }
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path partial_;
  bool committed_ = false;
};

}  // namespace kvloom
