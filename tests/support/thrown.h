// What a call throws, as text.
#pragma once

#include <string>

#include "kernels/error.h"

namespace kvloom::test {

// "input: " and the message of an InputError, "run: " and that of another Error, or "nothing was thrown".
inline std::string message_of(const auto& action) {
  try {
    action();
  } catch (const InputError& error) {
    return std::string("input: ") + error.what();
  } catch (const Error& error) {
    return std::string("run: ") + error.what();
  }
  return "nothing was thrown";
}

}  // namespace kvloom::test
