#include "launch/terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "kernels/error.h"

namespace kvloom {

bool is_terminal(Stream stream) { return isatty(stream == Stream::kOutput ? STDOUT_FILENO : STDERR_FILENO) == 1; }

void print_warning(const std::string& line) {
  if (!line.empty()) fmt::print(stderr, "{}\n", line);
}

void flush_output() {
  const bool failed_before = std::ferror(stdout) != 0;
  errno = 0;
  if (std::fflush(stdout) == 0 && !failed_before) return;
  fail("standard output cannot be written{}{}", errno != 0 ? ": " : "", errno != 0 ? std::strerror(errno) : "");
}

void ProgressLine::show(const std::string& line) {
  shown_ = Clock::now();
  if (!is_terminal(Stream::kError)) {
    fmt::print(stderr, "{}\n", line);
    return;
  }
  fmt::print(stderr, "\r\x1b[K{}", line);
  std::fflush(stderr);
  open_ = true;
}

void ProgressLine::update(const std::string& line) {
  constexpr std::chrono::milliseconds kOnTerminal(200);
  const bool terminal = is_terminal(Stream::kError);
  if ((terminal && !open_) || Clock::now() - shown_ >= (terminal ? kOnTerminal : apart_)) show(line);
}

void ProgressLine::end() {
  if (open_) fmt::print(stderr, "\n");
  open_ = false;
}

}  // namespace kvloom
