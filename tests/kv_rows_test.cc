// New keys and values into pools on the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/ragged_attention.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

using test::Random;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

struct Ask {
  KvFormat format;
  std::int64_t rows;
  std::int64_t kv_heads;
  std::int64_t head_dim;
};

// A pool of f32 copies beside the one that is written, and what a call writes into both.
template <typename In>
struct Problem {
  Problem(const Ask& given, Random& random)
      : ask(given),
        pool_rows(ask.rows + random.integer(0, 9)),
        stride(width() + random.integer(0, 5)),
        places(at(pool_rows)),
        rows(at(pool_rows * width()) * 4, '\x11'),
        scales(at(pool_rows * ask.kv_heads), 0.5f) {
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), random.engine());
    draw(random);
  }

  std::int64_t width() const { return ask.kv_heads * ask.head_dim; }

  void draw(Random& random) {
    input.clear();
    for (std::int64_t i = 0; i < ask.rows * stride; ++i) input.push_back(In(static_cast<float>(random.normal())));
    for (std::int64_t i = 0; i < ask.head_dim; ++i) input[at(i)] = In(0.0f);
  }
  KvPool pool() { return {rows.data(), ask.format == KvFormat::kInt8 ? scales.data() : nullptr, ask.format}; }
  void run(KvMovement* movement) {
    cpu::run(StoreKvRows{.input = input.data(),
                         .dtype = DTypeOf<In>::value,
                         .input_stride = stride,
                         .pool = pool(),
                         .rows = ask.rows,
                         .kv_heads = ask.kv_heads,
                         .head_dim = ask.head_dim,
                         .places = places.data(),
                         .movement = movement});
  }
  float kept(std::int64_t row, std::int64_t i) const {
    const std::int64_t index = row * width() + i;
    switch (ask.format) {
      case KvFormat::kF32:
        return reinterpret_cast<const float*>(rows.data())[index];
      case KvFormat::kBF16:
        return static_cast<float>(reinterpret_cast<const BFloat16*>(rows.data())[index]);
      case KvFormat::kInt8:
        return static_cast<float>(static_cast<std::int8_t>(rows[at(index)])) *
               scales[at(row * ask.kv_heads + i / ask.head_dim)];
    }
    return 0;
  }
  float wanted(std::int64_t n, std::int64_t i) const {
    const In* row = &input[at(n * stride)];
    const auto value = static_cast<float>(row[i]);
    if (ask.format == KvFormat::kF32) return value;
    if (ask.format == KvFormat::kBF16) return static_cast<float>(BFloat16(value));
    float most = 0;
    for (std::int64_t k = 0; k < ask.head_dim; ++k) {
      most = std::max(most, std::fabs(static_cast<float>(row[i / ask.head_dim * ask.head_dim + k])));
    }
    const float scale = most / 127.0f;
    return scale == 0 ? 0.0f : std::nearbyint(value / scale) * scale;
  }

  Ask ask;
  std::int64_t pool_rows;
  std::int64_t stride;
  std::vector<std::int64_t> places;  // rows of the pool: the call's, then those that it leaves alone
  std::vector<char> rows;
  std::vector<float> scales;
  std::vector<In> input;
};

std::vector<Ask> asks(Random& random) {
  std::vector<Ask> all;
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16, KvFormat::kInt8}) {
    for (const std::int64_t head_dim : {1, 8, 13, 64, 128}) {
      all.push_back({format, random.integer(1, 20), random.integer(1, 4), head_dim});
    }
    all.push_back({format, 700, 4, 64});
  }
  return all;
}

template <typename T>
class StoreKvRowsKernel : public ::testing::Test {};
using InputTypes = ::testing::Types<float, BFloat16>;
TYPED_TEST_SUITE(StoreKvRowsKernel, InputTypes);

TYPED_TEST(StoreKvRowsKernel, WritesEachRowAtItsPlaceAndNothingElse) {
  Random random;
  for (const Ask& ask : asks(random)) {
    Problem<TypeParam> problem(ask, random);
    const Problem<TypeParam> before = problem;
    problem.run(nullptr);
    for (std::int64_t n = 0; n < problem.pool_rows; ++n) {
      const std::int64_t place = problem.places[at(n)];
      for (std::int64_t i = 0; i < problem.width(); ++i) {
        const float want = n < ask.rows ? problem.wanted(n, i) : before.kept(place, i);
        ASSERT_EQ(problem.kept(place, i), want) << static_cast<int>(ask.format) << " row " << n << " at " << i;
      }
    }
  }
}

// Int8's values are products. Two ways to compute `now - before` round each product and the difference, or fuse them:
// each errs by eps / 2 of |now|, of |before| and of their sum at most, however small the difference is.
float tolerance_of_difference(KvFormat format, float now, float before) {
  if (format != KvFormat::kInt8) return 0;
  return 2 * std::numeric_limits<float>::epsilon() * (now + before);
}

TYPED_TEST(StoreKvRowsKernel, SaysHowFarRowsMoved) {
  Random random;
  for (const Ask& ask : asks(random)) {
    Problem<TypeParam> problem(ask, random);
    problem.run(nullptr);
    const Problem<TypeParam> before = problem;
    problem.draw(random);
    std::vector<KvMovement> movement(at(ask.rows));
    problem.run(movement.data());
    for (std::int64_t n = 0; n < ask.rows; ++n) {
      KvMovement want{0, 0};
      float old = 0;
      for (std::int64_t i = 0; i < problem.width(); ++i) {
        const float now = problem.kept(problem.places[at(n)], i);
        ASSERT_EQ(now, problem.wanted(n, i));
        const float then = before.kept(problem.places[at(n)], i);
        want.difference = std::max(want.difference, std::fabs(now - then));
        old = std::max(old, std::fabs(then));
        want.value = std::max(want.value, std::fabs(now));
      }
      ASSERT_NEAR(movement[at(n)].difference, want.difference, tolerance_of_difference(ask.format, want.value, old));
      ASSERT_FLOAT_EQ(movement[at(n)].value, want.value);
    }
    problem.run(movement.data());
    for (const KvMovement& still : movement) ASSERT_EQ(still.difference, 0.0f);
  }
}

TEST(StoreKvRows, RefusesInt8WithoutScales) {
  Random random;
  Problem<float> problem({KvFormat::kInt8, 2, 1, 8}, random);
  KvPool pool = problem.pool();
  pool.scales = nullptr;
  EXPECT_THROW(cpu::run(StoreKvRows{.input = problem.input.data(),
                                    .dtype = DType::kF32,
                                    .pool = pool,
                                    .rows = 2,
                                    .kv_heads = 1,
                                    .head_dim = 8,
                                    .places = problem.places.data()}),
               Error);
}

}  // namespace
}  // namespace kvloom
