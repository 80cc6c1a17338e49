#include "kernels/rope.h"

#include "tests/support/kernel_rows.h"
#include "tests/support/random_pages.h"

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
        const std::int64_t nowhere = -first - period;
        const std::int64_t kinds[] = {nowhere, random.integer(nowhere, -first), random.integer(nowhere, kFurthest)};
        starts.push_back(static_cast<std::int32_t>(kinds[random.integer(0, 2)]));
      }
    }
    poison(data);
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
  // Rows that stand nowhere become NaN.
  void poison(Rows<T>& rows) const {
    for (std::int64_t r = 0; r < rows.rows; ++r) {
      if (position(r) >= 0) continue;
      for (std::int64_t c = 0; c < rows.columns; ++c) rows.at(r, c) = Rows<T>::gap();
    }
  }
  // Of values [data.rows, data.columns], the rows that stand somewhere; the others have to be as poisoned.
  Doubles standing(const Doubles& values) const {
    Doubles result;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (position(static_cast<std::int64_t>(i) / data.columns) >= 0) {
        result.push_back(values[i]);
      } else {
        EXPECT_TRUE(std::isnan(values[i])) << i;
      }
    }
    return result;
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

  static constexpr std::int64_t kFurthest = 40;
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
      test::expect_close(problem.standing(problem.data.dense()), problem.standing(expected),
                         test::rounding_of<TypeParam>(), "rotated");
      problem.data.expect_gaps_untouched();
    }
  }
}

// Rows of one product [queries, keys, values] split, turned, and K and V written into caches or pages.
TYPED_TEST(RopeKernel, SplitsAProductIntoTurnedQueriesAndCachesOrPagesOfKeysAndValues) {
  Random random;
  for (int trial = 0; trial < 40; ++trial) {
    Problem<TypeParam> problem(random);
    const std::int64_t dim = 2 * problem.half;
    const std::int64_t query_heads = problem.heads;
    const std::int64_t kv_heads = random.integer(1, 3);
    const std::int64_t sequences = problem.data.rows / problem.period;
    const std::int64_t capacity = problem.first + problem.kFurthest + problem.period + random.integer(0, 3);
    test::RandomPages pages(random, sequences, capacity, 16 << random.integer(0, 2));
    const RowPlace place = random.flip() ? RowPlace::kAtPage : RowPlace::kAtPosition;
    const auto row_of = [&](std::int64_t r) {
      const std::int64_t sequence = r / problem.period;
      const std::int64_t position = problem.position(r);
      if (position < 0) return position;
      return place == RowPlace::kAtPage ? pages.row(sequence, position) : sequence * capacity + position;
    };
    for (std::int64_t r = 0; r < problem.data.rows; ++r) row_of(r);
    Rows<TypeParam> joint(problem.data.rows, (query_heads + 2 * kv_heads) * dim);
    joint.randomise(random);
    problem.poison(joint);
    Rows<TypeParam> query(joint.rows, query_heads * dim);
    Rows<TypeParam> key(std::max(pages.rows(), sequences * capacity), kv_heads * dim);
    Rows<TypeParam> value = key;
    const auto part = [&](std::int64_t column, Rows<TypeParam>& output, RowPlace to, HeadTurn turn) {
      return RopePart{joint.data.data() + column,
                      output.data.data(),
                      output.columns / dim,
                      joint.stride,
                      output.stride,
                      capacity * output.stride,
                      to,
                      turn};
    };
    cpu::run(RopeSplit{
        {part(0, query, RowPlace::kDense, HeadTurn::kRotated), part(query_heads * dim, key, place, HeadTurn::kRotated),
         part((query_heads + kv_heads) * dim, value, place, HeadTurn::kAsIs)},
        problem.cosine.data(),
        problem.sine.data(),
        joint.rows,
        dim,
        problem.first,
        problem.period,
        DTypeOf<TypeParam>::value,
        problem.starts_data(),
        pages.table(pages.entries().data())});
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
      const std::int64_t to = row_of(r);
      for (std::int64_t c = 0; c < query.columns; ++c) ASSERT_EQ(query(r, c), turned(r, c));
      for (std::int64_t c = 0; c < key.columns; ++c) {
        ASSERT_EQ(key(to, c), turned(r, query.columns + c));
        ASSERT_EQ(value(to, c), joint(r, query.columns + key.columns + c));
      }
    }
    // Other places hold what they held.
    EXPECT_EQ(std::ranges::count_if(key.dense(), [](double x) { return !std::isnan(x); }), written * key.columns);
    EXPECT_EQ(std::ranges::count_if(value.dense(), [](double x) { return !std::isnan(x); }), written * key.columns);
  }
}

TEST(RopeKernelPair, BackwardUndoesForward) {
  Random random;
  Problem<float> problem(random);
  const Doubles before = problem.standing(problem.data.dense());
  cpu::run(problem.op(Rotation::kForward));
  cpu::run(problem.op(Rotation::kBackward));
  test::expect_close(problem.standing(problem.data.dense()), before, 1e-5, "turned back");
}

}  // namespace
}  // namespace kvloom
