// Counter-based random numbers, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": Philox4x32-10. A
// value depends on (seed, stream, index) only, never on what was drawn before or by whom.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/host_device.h"

namespace kvloom {

// Four words of Philox4x32-10.
struct RandomBlock {
  std::uint32_t words[4];  // no std::array: its members are the host's alone

  friend constexpr bool operator==(const RandomBlock&, const RandomBlock&) = default;
};

KVLOOM_HOST_DEVICE constexpr RandomBlock philox(RandomBlock counter, std::uint64_t key) {
  auto low = static_cast<std::uint32_t>(key);
  auto high = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const auto& words = counter.words;
    const std::uint64_t first = std::uint64_t{0xD2511F53u} * words[0];
    const std::uint64_t second = std::uint64_t{0xCD9E8D57u} * words[2];
    counter = {{static_cast<std::uint32_t>(second >> 32) ^ words[1] ^ low, static_cast<std::uint32_t>(second),
                static_cast<std::uint32_t>(first >> 32) ^ words[3] ^ high, static_cast<std::uint32_t>(first)}};
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return counter;
}

// The index-th block of a stream: index and stream fill the counter; the seed is the key.
KVLOOM_HOST_DEVICE constexpr RandomBlock random_block(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  return philox({{static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                  static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)}},
                seed);
}

// [0, 1) with 53 of two words' bits.
KVLOOM_HOST_DEVICE constexpr double unit_interval(std::uint32_t high, std::uint32_t low) {
  const std::uint64_t word = (std::uint64_t{high} << 32) | low;
  return static_cast<double>(word >> 11) * 0x1p-53;
}

// A stream for a name, the same on every machine: FNV-1a, 64 bits.
constexpr std::uint64_t stream_id(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// The index-th value of a stream, in [0, 1) with 53 random bits.
KVLOOM_HOST_DEVICE constexpr double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  const RandomBlock block = random_block(seed, stream, index);
  return unit_interval(block.words[0], block.words[1]);
}

// output[i] = mean + stddev * n(first_element + i), n standard normal (Box-Muller on the stream's blocks). f32 [count].
// A tensor filled in parts has the values of one filled whole.
struct FillNormal {
  float* output;
  std::int64_t count;
  std::uint64_t seed;
  std::uint64_t stream;
  std::int64_t first_element = 0;
  float mean = 0;
  float stddev = 1;
};

namespace cpu {
void run(const FillNormal& op);
}  // namespace cpu

}  // namespace kvloom
