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
    for (std::int64_t i = 0; i < (first + period) * half; ++i) {
      const double angle = random.real(-4, 4);
      cosine.push_back(static_cast<float>(std::cos(angle)));
      sine.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  Rope op(Rotation rotation) {
    return {data.data.data(), cosine.data(), sine.data(),      data.rows, heads, 2 * half, data.stride, first,
            period,           rotation,      DTypeOf<T>::value};
  }
  // As multiplication of complex numbers: low + i high turns by cosine + i sine.
  Doubles expected(double direction) const {
    Doubles result = data.dense();
    for (std::int64_t r = 0; r < data.rows; ++r) {
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t d = 0; d < half; ++d) {
          const std::int64_t low = h * 2 * half + d;
          const auto turn = static_cast<std::size_t>((first + r % period) * half + d);
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

  std::int64_t heads, half, period, first;
  Rows<T> data;
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
    const std::int64_t capacity = problem.first + problem.period + random.integer(0, 3);
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
                       DTypeOf<TypeParam>::value});
    // All turned in place, as Rope does it.
    Rows<TypeParam> turned = joint;
    Rope rope = problem.op(Rotation::kForward);
    rope.data = turned.data.data();
    rope.rows = turned.rows;
    rope.heads = query_heads + kv_heads;
    rope.stride = turned.stride;
    cpu::run(rope);
    for (std::int64_t r = 0; r < joint.rows; ++r) {
      const std::int64_t place = r / problem.period * capacity + problem.first + r % problem.period;
      for (std::int64_t c = 0; c < query.columns; ++c) ASSERT_EQ(query(r, c), turned(r, c));
      for (std::int64_t c = 0; c < key.columns; ++c) {
        ASSERT_EQ(key(place, c), turned(r, query.columns + c));
        ASSERT_EQ(value(place, c), joint(r, query.columns + key.columns + c));
      }
    }
    // Other places of the caches hold what they held.
    EXPECT_EQ(std::ranges::count_if(key.dense(), [](double x) { return !std::isnan(x); }), joint.rows * key.columns);
    EXPECT_EQ(std::ranges::count_if(value.dense(), [](double x) { return !std::isnan(x); }), joint.rows * key.columns);
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
