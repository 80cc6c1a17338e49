#include "infer/generation/line_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 16;

int opened(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) reject_input("cannot read {}: {}", path.string(), reason_of(errno));
  if (std::filesystem::is_directory(path)) {
    ::close(descriptor);
    reject_input("cannot read {}: it is a folder; right is a file of lines", path.string());
  }
  return descriptor;
}

}  // namespace

LineReader::LineReader(const std::filesystem::path& path, std::size_t limit)
    : name_(path == "-" ? "standard input" : path.string()),
      descriptor_(path == "-" ? STDIN_FILENO : opened(path)),
      owned_(path != "-"),
      limit_(limit) {}

LineReader::LineReader(int descriptor, std::string name, std::size_t limit)
    : name_(std::move(name)), descriptor_(descriptor), owned_(false), limit_(limit) {}

LineReader::~LineReader() {
  if (owned_) ::close(descriptor_);
}

bool LineReader::fill() {
  buffer_.erase(0, std::exchange(begin_, 0));
  const std::size_t held = buffer_.size();
  buffer_.resize(held + kPiece);
  ssize_t got = 0;
  do {
    got = ::read(descriptor_, buffer_.data() + held, kPiece);
  } while (got < 0 && errno == EINTR);
  buffer_.resize(held + static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  if (got < 0) fail("{} cannot be read: {}", name_, reason_of(errno));
  return got > 0;
}

std::optional<InputLine> LineReader::next() {
  InputLine line;
  bool any = false;
  while (true) {
    const std::size_t newline = buffer_.find('\n', begin_);
    const std::size_t end = std::min(newline, buffer_.size());
    any = any || end > begin_;
    line.text.append(buffer_, begin_, std::min(end - begin_, limit_ + 1 - line.text.size()));
    offset_ += end - begin_;
    begin_ = end;
    if (newline != std::string::npos) break;
    if (fill()) continue;
    if (!any) return std::nullopt;
    line.end = LineEnd::kEndOfFile;
    break;
  }
  if (line.end == LineEnd::kNewline) {
    ++begin_;
    ++offset_;
  }
  if (line.text.size() > limit_) line.end = LineEnd::kTooLong;
  return line;
}

std::optional<std::int64_t> count_lines(const std::filesystem::path& path) {
  if (path == "-" || !std::filesystem::is_regular_file(path)) return std::nullopt;
  const MappedFile file(path);
  const std::span<const std::byte> bytes = file.bytes();
  expect_mapped(bytes);
  const auto newlines = std::ranges::count(bytes, std::byte{'\n'});
  return newlines + (bytes.empty() || bytes.back() == std::byte{'\n'} ? 0 : 1);
}

}  // namespace kvloom
