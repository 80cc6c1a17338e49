// A file of lines that is written from front to back by one process at a time, and gone on with after a process was
// killed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "infer/generation/line_reader.h"

namespace kvloom {

enum class AnswerStart : std::uint8_t {
  kFresh,   // refuses a file that has content
  kResume,  // goes on behind the lines that are there
};

class AnswerFile {
 public:
  // Makes the file, or opens it. Throws InputError when it cannot be written, has content and is to be fresh, or while
  // another process writes it, for which it waits three seconds.
  AnswerFile(const std::filesystem::path& path, AnswerStart start);
  ~AnswerFile();
  AnswerFile(const AnswerFile&) = delete;
  AnswerFile& operator=(const AnswerFile&) = delete;

  // Before the first `add`: the next line that is there; nothing behind the last whole one.
  std::optional<std::string> next_known();
  // Writes the line, and its newline, behind those that next_known gave; what stood there is gone. When this returns,
  // the line is with the operating system: the end of the process cannot take it away. Throws Error.
  void add(std::string_view line);
  // All lines have reached the disk when this returns.
  void finish();

 private:
  void lock();
  void begin();

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::unique_ptr<LineReader> known_;
  std::uint64_t end_ = 0;  // of the lines that are to stay
  bool begun_ = false;
};

}  // namespace kvloom
