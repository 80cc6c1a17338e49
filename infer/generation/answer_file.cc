#include "infer/generation/answer_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <limits>
#include <thread>
#include <utility>

#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

// One that was killed may take a moment to be gone.
constexpr std::chrono::seconds kPatience{3};

}  // namespace

AnswerFile::AnswerFile(const std::filesystem::path& path, AnswerStart start) : path_(writable_target(path)) {
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) reject_input("{} cannot be written: {}", path_.string(), reason_of(errno));
  try {
    lock();
    struct ::stat status {};
    if (::fstat(descriptor_, &status) != 0) fail("{} cannot be read: {}", path_.string(), reason_of(errno));
    if (start == AnswerStart::kFresh && status.st_size > 0) {
      reject_input("'{}' has content; right is --resume auto, to go on with it, or another file", path_.string());
    }
  } catch (const Error&) {
    ::close(std::exchange(descriptor_, -1));
    throw;
  }
  known_ = std::make_unique<LineReader>(descriptor_, path_.string(), std::numeric_limits<std::size_t>::max() - 1);
}

AnswerFile::~AnswerFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void AnswerFile::lock() {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) return;  // the file system knows no locks
    if (std::chrono::steady_clock::now() >= end) {
      reject_input("'{}' is being written by another process; wait for its end, or name another file", path_.string());
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

std::optional<std::string> AnswerFile::next_known() {
  std::optional<InputLine> line = known_->next();
  if (!line.has_value() || line->end != LineEnd::kNewline) return std::nullopt;
  end_ = known_->offset();
  return std::move(line->text);
}

void AnswerFile::begin() {
  begun_ = true;
  const auto end = static_cast<off_t>(end_);
  if (::ftruncate(descriptor_, end) != 0 || ::lseek(descriptor_, end, SEEK_SET) < 0) {
    fail("{} cannot be cut after its last whole line: {}", path_.string(), reason_of(errno));
  }
}

void AnswerFile::add(std::string_view line) {
  if (!begun_) begin();
  std::string text(line);
  text += '\n';
  for (std::string_view rest = text; !rest.empty();) {
    const ssize_t written = ::write(descriptor_, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("{} cannot be written: {}", path_.string(), reason_of(errno));
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
}

void AnswerFile::finish() {
  if (!begun_) begin();
  if (::fsync(descriptor_) != 0) fail("{} cannot be written: {}", path_.string(), reason_of(errno));
}

}  // namespace kvloom
