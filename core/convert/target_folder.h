// A folder that appears under its name as a whole.
#pragma once

#include <filesystem>
#include <optional>

#include "core/lock_file.h"

namespace kvloom {

// Throws InputError when something that is not an empty folder stands at `path`.
void refuse_existing_target(const std::filesystem::path& path);

// What one conversion at a time has on a target that does not exist yet. Makes the folders that lead there. Throws as
// above, before the lock and again under it, and as TargetLock does.
class TargetFolderLock {
 public:
  explicit TargetFolderLock(const std::filesystem::path& path);

 private:
  std::optional<TargetLock> lock_;
};

class TargetFolder {
 public:
  // Clears what an interrupted conversion left beside `path`, makes the folder to write into. Throws as
  // TargetFolderLock.
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
  TargetFolderLock lock_;
  bool committed_ = false;
};

}  // namespace kvloom
