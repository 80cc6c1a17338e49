#include "kernels/rope.h"

#include "tests/support/kernel_rows.h"

namespace kvloom {
namespace {

using test::Doubles;
using test::Random;
using test::Rows;

template <typename T>
struct Problem {
  explicit Problem(Random& random)
      : heads(random.integer(1, 4)),
        half(random.integer(1, 37)),
        period(random.integer(1, 6)),
        first(random.integer(0, 5)),
        data(period * random.integer(1, 3), heads * 2 * half, heads * 2 * half + random.integer(0, 7)) {
    data.randomise(random);
    if (random.flip()) {
      for (std::int64_t s = 0; s < data.rows / period; ++s) {
        starts.push_back(static_cast<std::int32_t>(random.flip() ? random.integer(0, kFurthest) : -first - period));
      }
    }
    for (std::int64_t i = 0; i < (first + kFurthest + period) * half; ++i) {
      const double angle = random.real(-4, 4);
      cosine.push_back(static_cast<float>(std::cos(angle)));
      sine.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  Rope op(Rotation rotation) {
    return {data.data.data(), cosine.data(), sine.data(),       data.rows,    heads, 2 * half, data.stride, first,
            period,           rotation,      DTypeOf<T>::value, starts_data()};
  }
  const std::int32_t* starts_data() const { return starts.empty() ? nullptr : starts.data(); }
  // Negative: the row is to be left as it is.
  std::int64_t position(std::int64_t r) const {
    const std::int64_t start = starts.empty() ? 0 : starts[static_cast<std::size_t>(r / period)];
    return first + start + r % period;
  }
  // As multiplication of complex numbers: low + i high turns by cosine + i sine.
  Doubles expected(double direction) const {
    Doubles result = data.dense();
    for (std::int64_t r = 0; r < data.rows; ++r) {
      if (position(r) < 0) continue;
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t d = 0; d < half; ++d) {
          const std::int64_t low = h * 2 * half + d;
          const auto turn = static_cast<std::size_t>(position(r) * half + d);
          const double c = test::to_double(cosine[turn]);
          const double s = direction * test::to_double(sine[turn]);
          result[test::area(r, data.columns) + static_cast<std::size_t>(low)] =
              data(r, low) * c - data(r, low + half) * s;
          result[test::area(r, data.columns) + static_cast<std::size_t>(low + half)] =
              data(r, low) * s + data(r, low + half) * c;
        }
      }
    }
    return result;
  }

  static constexpr std::int64_t kFurthest = 7;
  std::int64_t heads, half, period, first;
  Rows<T> data;
  std::vector<std::int32_t> starts;  // empty: all at `first`
  std::vector<float> cosine, sine;
};

template <typename T>
class RopeKernel : public ::testing::Test {};
TYPED_TEST_SUITE(RopeKernel, test::ComputeTypes);

TYPED_TEST(RopeKernel, TurnsPairsByTheAngleOfTheirPosition) {
  Random random;
  for (int trial = 0; trial < 30; ++trial) {
    for (const auto rotation : {Rotation::kForward, Rotation::kBackward}) {
      Problem<TypeParam> problem(random);
      const Doubles expected = problem.expected(rotation == Rotation::kForward ? 1 : -1);
      cpu::run(problem.op(rotation));
      test::expect_close(problem.data.dense(), expected, test::rounding_of<TypeParam>(), "rotated");
      problem.data.expect_gaps_untouched();
    }
  }
}

// Rows of one product [queries, keys, values] split, turned, and K and V written into caches.
TYPED_TEST(RopeKernel, SplitsAProductIntoTurnedQueriesAndCachesOfKeysAndValues) {
  Random random;
  for (int trial = 0; trial < 20; ++trial) {
    Problem<TypeParam> problem(random);
    const std::int64_t dim = 2 * problem.half;
    const std::int64_t query_heads = problem.heads;
    const std::int64_t kv_heads = random.integer(1, 3);
    const std::int64_t sequences = problem.data.rows / problem.period;
    const std::int64_t capacity = problem.first + problem.kFurthest + problem.period + random.integer(0, 3);
    Rows<TypeParam> joint(problem.data.rows, (query_heads + 2 * kv_heads) * dim);
    joint.randomise(random);
    Rows<TypeParam> query(joint.rows, query_heads * dim);
    Rows<TypeParam> key(sequences * capacity, kv_heads * dim);
    Rows<TypeParam> value = key;
    const auto part = [&](std::int64_t column, Rows<TypeParam>& output, RowPlace place, HeadTurn turn) {
      return RopePart{joint.data.data() + column,
                      output.data.data(),
                      output.columns / dim,
                      joint.stride,
                      output.stride,
                      capacity * output.stride,
                      place,
                      turn};
    };
    cpu::run(RopeSplit{{part(0, query, RowPlace::kDense, HeadTurn::kRotated),
                        part(query_heads * dim, key, RowPlace::kAtPosition, HeadTurn::kRotated),
                        part((query_heads + kv_heads) * dim, value, RowPlace::kAtPosition, HeadTurn::kAsIs)},
                       problem.cosine.data(),
                       problem.sine.data(),
                       joint.rows,
                       dim,
                       problem.first,
                       problem.period,
                       DTypeOf<TypeParam>::value,
                       problem.starts_data()});
    // All turned in place, as Rope does it.
    Rows<TypeParam> turned = joint;
    Rope rope = problem.op(Rotation::kForward);
    rope.data = turned.data.data();
    rope.rows = turned.rows;
    rope.heads = query_heads + kv_heads;
    rope.stride = turned.stride;
    cpu::run(rope);
    std::int64_t written = 0;
    for (std::int64_t r = 0; r < joint.rows; ++r) {
      if (problem.position(r) < 0) {
        for (std::int64_t c = 0; c < query.columns; ++c) ASSERT_TRUE(std::isnan(query(r, c)));
        continue;
      }
      ++written;
      const std::int64_t place = r / problem.period * capacity + problem.position(r);
      for (std::int64_t c = 0; c < query.columns; ++c) ASSERT_EQ(query(r, c), turned(r, c));
      for (std::int64_t c = 0; c < key.columns; ++c) {
        ASSERT_EQ(key(place, c), turned(r, query.columns + c));
        ASSERT_EQ(value(place, c), joint(r, query.columns + key.columns + c));
      }
    }
    // Other places of the caches hold what they held.
    EXPECT_EQ(std::ranges::count_if(key.dense(), [](double x) { return !std::isnan(x); }), written * key.columns);
    EXPECT_EQ(std::ranges::count_if(value.dense(), [](double x) { return !std::isnan(x); }), written * key.columns);
  }
}

TEST(RopeKernelPair, BackwardUndoesForward) {
  Random random;
  Problem<float> problem(random);
  const Doubles before = problem.data.dense();
  cpu::run(problem.op(Rotation::kForward));
  cpu::run(problem.op(Rotation::kBackward));
  test::expect_close(problem.data.dense(), before, 1e-5, "turned back");
}

}  // namespace
}  // namespace kvloom
