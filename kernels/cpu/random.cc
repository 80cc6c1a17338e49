#include "kernels/random.h"

#include <cmath>
#include <numbers>

namespace kvloom {
namespace {

using Block = std::array<std::uint32_t, 4>;

Block block_of(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  // Index and stream fill the counter; the seed is the key.
  return philox({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                 static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)},
                {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
}

double unit(std::uint32_t high, std::uint32_t low) {
  const std::uint64_t word = (std::uint64_t{high} << 32) | low;
  return static_cast<double>(word >> 11) * 0x1p-53;
}

// Two normals from one block: elements 2 * index and 2 * index + 1.
std::array<double, 2> normals(const Block& block) {
  const double radius = std::sqrt(-2 * std::log(1 - unit(block[0], block[1])));
  const double angle = 2 * std::numbers::pi * unit(block[2], block[3]);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace

Block philox(Block counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t second = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(second >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(second),
               static_cast<std::uint32_t>(first >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(first)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  const Block block = block_of(seed, stream, index);
  return unit(block[0], block[1]);
}

namespace cpu {

void run(const FillNormal& op) {
#pragma omp parallel for schedule(static) if (op.count > 4096)
  for (std::int64_t pair = op.first_element / 2; pair <= (op.first_element + op.count - 1) / 2; ++pair) {
    const auto values = normals(block_of(op.seed, op.stream, static_cast<std::uint64_t>(pair)));
    for (int half = 0; half < 2; ++half) {
      const std::int64_t i = 2 * pair + half - op.first_element;
      if (i < 0 || i >= op.count) continue;
      op.output[i] = static_cast<float>(op.mean + op.stddev * values[static_cast<std::size_t>(half)]);
    }
  }
}

}  // namespace cpu
}  // namespace kvloom
