// Buffers for tests of kernels: rows with gaps, in f32 or bf16, and comparison with double-precision expectations.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "tests/support/random.h"

namespace kvloom::test {

using Doubles = std::vector<double>;
using ComputeTypes = ::testing::Types<float, BFloat16>;

template <typename T>
double to_double(T value) {
  return static_cast<double>(static_cast<float>(value));
}

inline std::size_t area(std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b); }

// [rows, columns] with rows `stride` elements apart. Gaps hold NaN, so that a kernel that reads one shows.
template <typename T>
struct Rows {
  Rows(std::int64_t rows_, std::int64_t columns_, std::int64_t stride_)
      : rows(rows_), columns(columns_), stride(stride_), data(area(rows_, stride_), gap()) {}
  Rows(std::int64_t rows_, std::int64_t columns_) : Rows(rows_, columns_, columns_) {}

  static T gap() { return T(std::numeric_limits<float>::quiet_NaN()); }

  T& at(std::int64_t r, std::int64_t c) { return data[static_cast<std::size_t>(r * stride + c)]; }
  double operator()(std::int64_t r, std::int64_t c) const {
    return to_double(data[static_cast<std::size_t>(r * stride + c)]);
  }
  Rows& randomise(Random& random, double scale = 1) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) at(r, c) = T(static_cast<float>(scale * random.normal()));
    }
    return *this;
  }
  Doubles dense() const {
    Doubles values;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) values.push_back((*this)(r, c));
    }
    return values;
  }
  void expect_gaps_untouched() const {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = columns; c < stride; ++c)
        ASSERT_TRUE(std::isnan((*this)(r, c))) << "gap " << r << ", " << c;
    }
  }

  std::int64_t rows, columns, stride;
  std::vector<T> data;
};

template <typename T>
Doubles doubles(const std::vector<T>& values) {
  Doubles result;
  for (const T value : values) result.push_back(to_double(value));
  return result;
}

// What one rounding to T may cost beside arithmetic in f32.
template <typename T>
constexpr double rounding_of() {
  return std::is_same_v<T, BFloat16> ? 0x1.02p-8 : 1e-5;
}

// Every element within `rounding` of its expectation, and 2e-6 of the root mean square where terms cancel, or of
// `terms` where those are known to be larger than all that remains of them.
inline void expect_close(const Doubles& actual, const Doubles& expected, double rounding, const std::string& what,
                         double terms = 0) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double square = 0;
  for (const double value : expected) square += value * value;
  const double mean_square = square / std::max<double>(1, static_cast<double>(expected.size()));
  const double size = std::max(terms, std::sqrt(mean_square));
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], rounding * std::fabs(expected[i]) + 2e-6 * size) << what << " element " << i;
  }
}

template <typename T>
bool equal_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Calls compute() with 1, 2 and 5 threads and expects equal bits. compute returns a vector.
template <typename Compute>
void expect_equal_bits_for_any_thread_count(Compute&& compute) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto alone = compute();
  for (const int threads : {2, 5}) {
    omp_set_num_threads(threads);
    EXPECT_TRUE(equal_bits(compute(), alone)) << threads << " threads";
  }
  omp_set_num_threads(before);
}

// Central difference of `function` of one coordinate of `at`.
template <typename Function>
double slope(Function&& function, Doubles at, std::size_t i) {
  constexpr double kStep = 1e-5;
  const double middle = at[i];
  at[i] = middle + kStep;
  const double above = function(at);
  at[i] = middle - kStep;
  return (above - function(at)) / (2 * kStep);
}

}  // namespace kvloom::test
