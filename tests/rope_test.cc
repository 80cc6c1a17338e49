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
