#include "launch/terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>

#include "kernels/error.h"

namespace kvloom {
namespace {

std::string scaled(double value, double step, std::span<const char* const> units) {
  std::size_t unit = 0;
  while (value >= step && unit + 1 < units.size()) {
    value /= step;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f}{}", value, units[unit]) : fmt::format("{:.1f}{}", value, units[unit]);
}

}  // namespace

bool is_terminal(Stream stream) { return isatty(stream == Stream::kOutput ? STDOUT_FILENO : STDERR_FILENO) == 1; }

std::string format_bytes(double bytes) {
  static constexpr std::array kUnits = {" B", " KiB", " MiB", " GiB", " TiB"};
  return scaled(bytes, 1024, kUnits);
}

std::string format_count(double count) {
  static constexpr std::array kUnits = {"", "K", "M", "G", "T"};
  return scaled(count, 1000, kUnits);
}

std::string format_seconds(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  if (whole >= 3600) return fmt::format("{}h{:02}m", whole / 3600, whole % 3600 / 60);
  if (whole >= 60) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}s", whole);
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
