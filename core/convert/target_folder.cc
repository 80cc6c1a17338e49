#include "core/convert/target_folder.h"

#include <system_error>
#include <utility>

#include "core/checkpoint_folder.h"
#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {

namespace fs = std::filesystem;

void refuse_existing_target(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  if (!fs::exists(status)) return;
  if (fs::is_directory(status) && fs::is_empty(path, error)) return;
  reject_input("{} exists; a conversion replaces nothing: remove it or name another", path.string());
}

TargetFolderLock::TargetFolderLock(const fs::path& path) {
  refuse_existing_target(path);
  std::error_code error;
  fs::create_directories(parent_of(path), error);
  if (error) fail("cannot make folder {}: {}", parent_of(path).string(), error.message());
  lock_.emplace(path);
  // Another may have finished it in the meantime.
  refuse_existing_target(path);
}

TargetFolder::TargetFolder(fs::path path)
    : path_(without_trailing_slash(path)), partial_(partial_folder_of(path_)), lock_(path_) {
  clear_interrupted_save(path_);
  std::error_code error;
  fs::create_directory(partial_, error);
  if (error) fail("cannot make folder {}: {}", partial_.string(), error.message());
}

TargetFolder::~TargetFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(partial_, ignored);
}

void TargetFolder::commit() {
  sync_folder(partial_);
  std::error_code ignored;
  fs::remove(path_, ignored);  // an empty folder that stood there
  rename_file(partial_, path_);
  committed_ = true;
  sync_folder(parent_of(path_));
}

}  // namespace kvloom
