// Random damage for fuzzing parsers: bytes flipped, cut out, doubled, swapped for awkward ones.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "tests/support/random.h"

namespace kvloom::test {

inline std::string mutated(std::string bytes, Random& random) {
  static const std::vector<std::string> awkward = {"0",  "-1",   "99999999999999999999", "_",  ":",    "s",   "{",
                                                   "}",  "\"",   std::string(1, '\0'),   "\n", "\xff", "NaN", "1e999",
                                                   "[[", "none", "sandwich-top:"};
  for (std::int64_t edits = random.integer(1, 6); edits > 0; --edits) {
    const auto size = static_cast<std::int64_t>(bytes.size());
    const auto at = static_cast<std::size_t>(random.integer(0, size));
    switch (random.integer(0, 4)) {
      case 0:
        if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.integer(0, 7)));
        break;
      case 1:
        bytes.erase(at, static_cast<std::size_t>(random.integer(1, 16)));
        break;
      case 2:
        bytes.insert(
            at, awkward[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(awkward.size()) - 1))]);
        break;
      case 3:
        bytes.insert(at, bytes.substr(at, static_cast<std::size_t>(random.integer(1, 64))));
        break;
      default:
        bytes.resize(at);
    }
  }
  return bytes;
}

// How long each parser is fuzzed: KVLOOM_FUZZ_SECONDS, else half a second.
inline std::chrono::duration<double> fuzz_time() {
  const char* given = std::getenv("KVLOOM_FUZZ_SECONDS");
  return std::chrono::duration<double>(given != nullptr ? std::atof(given) : 0.5);
}

// How many inputs each parser is fuzzed with, whatever the time: KVLOOM_FUZZ_RUNS; 0: as many as the time allows.
inline std::int64_t fuzz_runs() {
  const char* given = std::getenv("KVLOOM_FUZZ_RUNS");
  return given != nullptr ? std::atoll(given) : 0;
}

// Feeds what `next` makes to `parse`, which must take it or throw InputError; anything else fails the test.
inline void fuzz(const std::function<std::string()>& next, const std::function<void(const std::string&)>& parse) {
  const auto end = std::chrono::steady_clock::now() + fuzz_time();
  std::int64_t runs = 0;
  while (fuzz_runs() > 0 ? runs < fuzz_runs() : std::chrono::steady_clock::now() < end) {
    const std::string input = next();
    try {
      parse(input);
    } catch (const InputError& error) {
      ASSERT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    }
    ++runs;
  }
  EXPECT_GT(runs, 10);
}

// The same with damaged seeds.
inline void fuzz(const std::vector<std::string>& seeds, Random& random,
                 const std::function<void(const std::string&)>& parse) {
  const auto next = [&] {
    return mutated(seeds[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(seeds.size()) - 1))],
                   random);
  };
  fuzz(next, parse);
}

}  // namespace kvloom::test
