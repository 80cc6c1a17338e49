// What the launcher shows a person.
#pragma once

#include <cstdint>
#include <string>

namespace kvloom {

enum class Stream : std::uint8_t { kOutput, kError };

bool is_terminal(Stream stream);

std::string format_bytes(double bytes);      // "1.5 MiB"
std::string format_count(double count);      // "1.5M"
std::string format_seconds(double seconds);  // "1h02m", "3m20s", "12s"

// Progress on standard error: one line that is written over on a terminal, a line of its own elsewhere.
class ProgressLine {
 public:
  void show(const std::string& line);
  // Ends the line that stands, if any, so that other text starts on its own.
  void end();

 private:
  bool open_ = false;
};

}  // namespace kvloom
