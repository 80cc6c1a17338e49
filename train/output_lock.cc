#include "train/output_lock.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <system_error>

#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

// Whether an error says that what the user named cannot be, rather than that the machine failed.
bool is_of_the_name(int error) {
  constexpr std::array kErrors = {EISDIR, ENOENT, ENOTDIR, EEXIST, EACCES, EPERM, EROFS, ENAMETOOLONG, ELOOP};
  return std::ranges::find(kErrors, error) != kErrors.end();
}

}  // namespace

OutputLock::OutputLock(const fs::path& directory, const LockKind& kind) : directory_(directory) {
  const fs::path path = directory / kind.file;
  lock_ = std::make_unique<LockFile>(path, [&] { make_directory(kind); });
  if (lock_->state() == LockFile::State::kCannotOpen) {
    refuse(kind, fmt::format("cannot open {}", path.string()), lock_->error());
  }
  if (lock_->state() == LockFile::State::kTaken) {
    reject_input("{}: '{}' is being {} into by {}; wait for its end, or name another", kind.option, directory.string(),
                 kind.doing, lock_->holder());
  }
}

void OutputLock::make_directory(const LockKind& kind) {
  std::error_code error;
  made_directory_ = fs::create_directories(directory_, error) || made_directory_;
  if (!error) return;
  if (error == std::errc::file_exists || error == std::errc::not_a_directory) {
    reject_input("{}: '{}' is, or lies in, something that is no folder; name another", kind.option,
                 directory_.string());
  }
  refuse(kind, fmt::format("cannot make folder {}", directory_.string()), error.value());
}

void OutputLock::refuse(const LockKind& kind, const std::string& what, int error) const {
  // A constructor that throws is followed by no destructor.
  if (made_directory_) ::rmdir(directory_.c_str());
  if (is_of_the_name(error)) reject_input("{}: {}: {}", kind.option, what, reason_of(error));
  fail("{}: {}", what, reason_of(error));
}

OutputLock::~OutputLock() {
  lock_.reset();
  if (made_directory_) ::rmdir(directory_.c_str());  // nothing happens if it is not empty
}

}  // namespace kvloom
