// Sanitizers slow code five to twenty times. Tests whose time goes into repetition do less of it there, and say so.
#pragma once

#include <cstdio>
#include <string_view>

namespace kvloom::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// `full`, or `fewer` under a sanitizer; `what` is being counted.
inline int repetitions(int full, int fewer, std::string_view what) {
  if (!kSanitized) return full;
  std::printf("under a sanitizer: %d %.*s instead of %d\n", fewer, static_cast<int>(what.size()), what.data(), full);
  return fewer;
}

}  // namespace kvloom::test
