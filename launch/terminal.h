// What the launcher shows a person.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace kvloom {

enum class Stream : std::uint8_t { kOutput, kError };

bool is_terminal(Stream stream);

// On standard error; an empty line says nothing.
void print_warning(const std::string& line);

// Sends what was printed on standard output on its way. Throws Error when it could not be written, now or before.
void flush_output();

// Progress on standard error: one line that is written over on a terminal, lines of their own elsewhere.
class ProgressLine {
 public:
  // Lines of update lie `apart` where no terminal is.
  explicit ProgressLine(std::chrono::milliseconds apart = std::chrono::seconds(10)) : apart_(apart) {}

  // Shows the line now.
  void show(const std::string& line);
  // Shows the line if it is time for one: on a terminal the first and then five a second, elsewhere one every so often,
  // so that what is done soon says nothing.
  void update(const std::string& line);
  // Ends the line that stands, if any, so that other text starts on its own.
  void end();

 private:
  using Clock = std::chrono::steady_clock;

  std::chrono::milliseconds apart_;
  Clock::time_point shown_ = Clock::now();
  bool open_ = false;
};

}  // namespace kvloom
