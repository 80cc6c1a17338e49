#include "core/lock_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

// One that was killed may take a moment to be gone.
constexpr std::chrono::seconds kPatience{3};

// Others may take the file or its folder away between making it and locking it, but not time after time.
constexpr int kMostTries = 100;

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

LockFile::LockFile(fs::path path, const std::function<void()>& before) : path_(std::move(path)) {
  for (int tries = 1; tries <= kMostTries; ++tries) {
    if (before) before();
    if (try_once()) return;
  }
}

bool LockFile::try_once() {
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    error_ = errno;
    return error_ != ENOENT;
  }
  const int refusal = try_for(kPatience, descriptor_);
  if (refusal == 0 && stands_at(path_, descriptor_)) {
    state_ = State::kHeld;
    write_holder(descriptor_);
    return true;
  }
  if (refusal == EWOULDBLOCK) holder_ = holder_of(descriptor_);
  ::close(std::exchange(descriptor_, -1));
  if (refusal == 0) return false;
  state_ = refusal == EWOULDBLOCK ? State::kTaken : State::kNoLocks;
  return true;
}

LockFile::~LockFile() {
  // While it is held: whoever comes next finds either this file, and waits for it, or none.
  if (state_ == State::kHeld) ::unlink(path_.c_str());
  if (descriptor_ >= 0) ::close(descriptor_);
}

TargetLock::TargetLock(const fs::path& target) : file_(hidden_sibling(target, ".lock")) {
  switch (file_.state()) {
    case LockFile::State::kHeld:
    case LockFile::State::kNoLocks:
      return;
    case LockFile::State::kTaken:
      reject_input("'{}' is being written by {}; wait for its end, or name another", target.string(), file_.holder());
    case LockFile::State::kCannotOpen:
      reject_input("'{}' cannot be written: {}", target.string(), reason_of(file_.error()));
  }
}

}  // namespace kvloom
