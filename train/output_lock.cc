#include "train/output_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

// One that was killed may take a moment to be gone.
constexpr std::chrono::seconds kPatience{3};

// Others may take the empty directory away between making it and opening the file, but not time after time.
constexpr int kMostTries = 100;

// Whether an error says that what the user named cannot be, rather than that the machine failed.
bool is_of_the_name(int error) {
  constexpr std::array kErrors = {EISDIR, ENOENT, ENOTDIR, EEXIST, EACCES, EPERM, EROFS, ENAMETOOLONG, ELOOP};
  return std::ranges::find(kErrors, error) != kErrors.end();
}

std::string this_process() {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '\0';
  return fmt::format("process {} on {}", ::getpid(), host[0] == '\0' ? "this machine" : host.data());
}

// What its holder wrote; it may be writing still.
std::string holder_of(int descriptor) {
  std::array<char, 300> text{};
  const ssize_t size = ::pread(descriptor, text.data(), text.size(), 0);
  std::string holder(text.data(), size > 0 ? static_cast<std::size_t>(size) : 0);
  holder.resize(std::min(holder.find('\n'), holder.size()));
  return holder.empty() ? "another process" : holder;
}

void write_holder(int descriptor) {
  const std::string text = this_process() + "\n";
  // For people alone: who cannot read it learns less.
  if (::ftruncate(descriptor, 0) != 0) return;
  [[maybe_unused]] const ssize_t ignored = ::pwrite(descriptor, text.data(), text.size(), 0);
}

// 0 when the lock was got, or why not.
int try_for(std::chrono::seconds patience, int descriptor) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    const int refusal = errno;
    if (refusal == EINTR) continue;
    if (refusal != EWOULDBLOCK || std::chrono::steady_clock::now() >= end) return refusal;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return 0;
}

// Whether the file still stands under its name. Who had it before may have taken it away, and then the lock is on a
// file that nobody else will find.
bool stands_at(const fs::path& path, int descriptor) {
  struct ::stat opened {};
  struct ::stat named {};
  return ::fstat(descriptor, &opened) == 0 && ::stat(path.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
         opened.st_ino == named.st_ino;
}

}  // namespace

OutputLock::OutputLock(const fs::path& directory, const LockKind& kind)
    : directory_(directory), path_(directory / kind.file) {
  for (int tries = 1; !held_; ++tries) {
    make_directory(kind);
    descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    const int error = descriptor_ < 0 ? errno : 0;
    if (error == ENOENT && tries < kMostTries) continue;
    if (error != 0) refuse(kind, fmt::format("cannot open {}", path_.string()), error);
    const int refusal = try_for(kPatience, descriptor_);
    held_ = refusal == 0 && stands_at(path_, descriptor_);
    if (held_) {
      write_holder(descriptor_);
      return;
    }
    const std::string holder = holder_of(descriptor_);
    ::close(std::exchange(descriptor_, -1));
    if (refusal == EWOULDBLOCK) {
      reject_input("{}: '{}' is being {} into by {}; wait for its end, or name another", kind.option,
                   directory.string(), kind.doing, holder);
    }
    if (refusal != 0) return;  // the file system knows no locks
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
  // While it is held: whoever comes next finds either this file, and waits for it, or none.
  if (held_) ::unlink(path_.c_str());
  if (descriptor_ >= 0) ::close(descriptor_);
  if (made_directory_) ::rmdir(directory_.c_str());  // nothing happens if it is not empty
}

}  // namespace kvloom
