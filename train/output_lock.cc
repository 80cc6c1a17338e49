#include "train/output_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <string>
#include <system_error>
#include <thread>

#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLockName = "training.lock";
// A training that was killed may take a moment to be gone.
constexpr std::chrono::seconds kPatience{3};

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

}  // namespace

OutputLock::OutputLock(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) fail("cannot make folder {}: {}", directory.string(), error.message());
  const fs::path path = directory / kLockName;
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail("cannot open {}: {}", path.string(), reason_of(errno));
  const int refusal = try_for(kPatience, descriptor_);
  if (refusal == 0) {
    held_ = true;
    write_holder(descriptor_);
  } else if (refusal == EWOULDBLOCK) {
    const std::string holder = holder_of(descriptor_);
    ::close(descriptor_);
    reject_input("output.directory: '{}' is being trained into by {}; wait for its end, or name another",
                 directory.string(), holder);
  }
}

OutputLock::~OutputLock() { ::close(descriptor_); }

}  // namespace kvloom
