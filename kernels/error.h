// The one family of exceptions. A message says what was wrong, where, and what would be right, in one line.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace kvloom {

// The text as one line: what it quotes may hold newlines and worse.
inline std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return text;
}

// Something failed while running: the process ends with exit status 1.
class Error : public std::runtime_error {
 public:
  explicit Error(std::string message) : std::runtime_error(one_line(std::move(message))) {}
};

// The user's input cannot be used (config, map, file, argument): the process ends with exit status 2.
class InputError : public Error {
 public:
  using Error::Error;
};

template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
[[noreturn]] void reject_input(fmt::format_string<Args...> format, Args&&... args) {
  throw InputError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace kvloom
