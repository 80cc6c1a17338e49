// Random input for tests: fresh every run, its seed printed when a test fails, repeatable by KVLOOM_TEST_SEED.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

namespace kvloom::test {

// What else is drawn during a test follows from the seed of the newest Random, so that one number repeats all of it.
struct NewestSeed {
  std::atomic<std::uint64_t> seed = 0;
  std::atomic<std::uint64_t> made = 0;  // seeds so far: a test may begin with the same one as the test before
};

inline NewestSeed& newest_seed() {
  static NewestSeed newest;
  return newest;
}

class Random {
 public:
  Random() : Random(chosen_seed()) {
    newest_seed().seed = seed_;
    ++newest_seed().made;
  }
  explicit Random(std::uint64_t seed) : seed_(seed), trace_(__FILE__, __LINE__, message(seed)), engine_(seed) {}

  std::uint64_t seed() const { return seed_; }
  // Uniform in [low, high], both ends included.
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  bool flip() { return integer(0, 1) == 1; }
  double real(double low, double high) { return std::uniform_real_distribution<double>(low, high)(engine_); }
  double normal() { return std::normal_distribution<double>()(engine_); }
  template <typename T = float>
  std::vector<T> normals(std::size_t count, double scale = 1) {
    std::vector<T> values(count);
    for (T& value : values) value = static_cast<T>(scale * normal());
    return values;
  }
  std::vector<std::int32_t> tokens(std::size_t count, std::int64_t vocab) {
    std::vector<std::int32_t> values(count);
    for (std::int32_t& value : values) value = static_cast<std::int32_t>(integer(0, vocab - 1));
    return values;
  }
  std::mt19937_64& engine() { return engine_; }

 private:
  static std::uint64_t chosen_seed() {
    const char* given = std::getenv("KVLOOM_TEST_SEED");
    return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  }
  static std::string message(std::uint64_t seed) { return "run again with KVLOOM_TEST_SEED=" + std::to_string(seed); }

  std::uint64_t seed_;
  ::testing::ScopedTrace trace_;
  std::mt19937_64 engine_;
};

}  // namespace kvloom::test
