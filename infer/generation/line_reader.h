// Lines of a file or of standard input, one at a time, however long the whole is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace kvloom {

enum class LineEnd : std::uint8_t {
  kNewline,
  kEndOfFile,  // the last line has no newline
  kTooLong,    // the text is the line's beginning
};

struct InputLine {
  std::string text;  // without its newline
  LineEnd end = LineEnd::kNewline;
};

class LineReader {
 public:
  // A file; "-" is standard input. `limit`: bytes of a line at most; the rest of a longer one is skipped. Throws
  // InputError when the file cannot be read.
  LineReader(const std::filesystem::path& path, std::size_t limit);
  // An open file, from where it stands; `name` stands in messages, and the file stays open.
  LineReader(int descriptor, std::string name, std::size_t limit);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // The next line; nothing behind the last. Throws Error when reading fails.
  std::optional<InputLine> next();
  // Bytes of the lines that were taken.
  std::uint64_t offset() const { return offset_; }

 private:
  bool fill();

  std::string name_;
  int descriptor_;
  bool owned_;
  std::size_t limit_;
  std::string buffer_;
  std::size_t begin_ = 0;  // of what was not taken
  std::uint64_t offset_ = 0;
};

// The lines of a file that can be read twice, a last one without newline too; nothing for standard input, pipes and
// devices. Throws InputError when the file cannot be read.
std::optional<std::int64_t> count_lines(const std::filesystem::path& path);

}  // namespace kvloom
