// What tests of operations on a GPU against the same on the CPU share.
#pragma once

#include "tests/support/gpu.h"
#include "tests/support/kernel_rows.h"

namespace kvloom::test {

// Both sides round: they may be one unit in the last place apart, 2^-7 of a bf16.
template <typename T>
inline constexpr double kApart = std::is_same_v<T, BFloat16> ? 0x1.02p-7 : 2e-5;

template <typename T>
void expect_same(const Mirror& mirror, const std::vector<T>& host, const std::string& what, double terms = 0) {
  // Gaps hold NaN on both sides.
  Doubles device;
  Doubles expected;
  const std::vector<T> now = mirror.now(host);
  for (std::size_t i = 0; i < host.size(); ++i) {
    const double value = to_double(host[i]);
    ASSERT_EQ(std::isnan(value), std::isnan(to_double(now[i]))) << what << " element " << i;
    if (std::isnan(value)) continue;
    expected.push_back(value);
    device.push_back(to_double(now[i]));
  }
  expect_close(device, expected, kApart<T>, what, terms);
}

struct RowSize {
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t gap;  // between rows
};

// Single elements, packs that a warp shares, packs that a block shares, and rows beyond what threads keep.
inline std::vector<RowSize> row_sizes(Random& random) {
  return {{random.integer(1, 9), random.integer(1, 70), random.integer(0, 5)},
          {random.integer(1, 40), 64, 8},
          {random.integer(1, 5), 8 * random.integer(130, 200), 0},
          {3, 8 * random.integer(1030, 1100), 16},
          {2, 1 + 2 * random.integer(600, 700), 1},
          {0, 16, 0}};
}

}  // namespace kvloom::test
