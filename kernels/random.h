// Counter-based random numbers, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": Philox4x32-10. A
// value depends on (seed, stream, index) only, never on what was drawn before or by whom.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace kvloom {

// One block of four words of Philox4x32-10.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

// A stream for a name, the same on every machine: FNV-1a, 64 bits.
constexpr std::uint64_t stream_id(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// The index-th value of a stream, in [0, 1) with 53 random bits.
double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);

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
