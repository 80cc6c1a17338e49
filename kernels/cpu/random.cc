#include "kernels/random.h"

#include <array>
#include <cmath>
#include <numbers>

namespace kvloom {
namespace {

// Two normals from one block: elements 2 * index and 2 * index + 1.
std::array<double, 2> normals(const RandomBlock& block) {
  const double radius = std::sqrt(-2 * std::log(1 - unit_interval(block.words[0], block.words[1])));
  const double angle = 2 * std::numbers::pi * unit_interval(block.words[2], block.words[3]);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace

namespace cpu {

void run(const FillNormal& op) {
#pragma omp parallel for schedule(static) if (op.count > 4096)
  for (std::int64_t pair = op.first_element / 2; pair <= (op.first_element + op.count - 1) / 2; ++pair) {
    const auto values = normals(random_block(op.seed, op.stream, static_cast<std::uint64_t>(pair)));
    for (int half = 0; half < 2; ++half) {
      const std::int64_t i = 2 * pair + half - op.first_element;
      if (i < 0 || i >= op.count) continue;
      op.output[i] = static_cast<float>(op.mean + op.stddev * values[static_cast<std::size_t>(half)]);
    }
  }
}

}  // namespace cpu
}  // namespace kvloom
