#include "kernels/reduce.h"

#include "tests/support/kernel_rows.h"

namespace kvloom {
namespace {

using test::Random;
using test::Rows;

double sum_of_squares(const std::vector<float>& data) {
  double result = -1;
  cpu::run(SumOfSquares{data.data(), static_cast<std::int64_t>(data.size()), &result});
  return result;
}

TEST(SumOfSquares, SumsInDoubleOverwritesAndOfNothingIsZero) {
  Random random;
  EXPECT_EQ(sum_of_squares({}), 0);
  for (int trial = 0; trial < 10; ++trial) {
    const auto data = random.normals(static_cast<std::size_t>(random.integer(1, 60000)));
    double expected = 0;
    for (const float x : data) expected += test::to_double(x) * test::to_double(x);
    EXPECT_NEAR(sum_of_squares(data), expected, 1e-13 * expected);
  }
}

TEST(SumOfSquares, HasEqualBitsForAnyThreadCount) {
  Random random;
  const auto data = random.normals(static_cast<std::size_t>(random.integer(100000, 200000)));
  test::expect_equal_bits_for_any_thread_count([&] { return std::vector<double>{sum_of_squares(data)}; });
}

template <typename T>
class MaxChangeOf : public ::testing::Test {};
TYPED_TEST_SUITE(MaxChangeOf, test::ComputeTypes);

template <typename T>
std::pair<float, float> max_change(const Rows<T>& a, const Rows<T>& b) {
  std::pair<float, float> result{-1, -1};
  cpu::run(MaxChange{a.data.data(), b.data.data(), a.columns, &result.first, &result.second, DTypeOf<T>::value});
  return result;
}

TYPED_TEST(MaxChangeOf, FindsTheLargestWhereverItStands) {
  Random random;
  for (const std::int64_t count : {random.integer(1, 70), random.integer(40000, 50000)}) {
    Rows<TypeParam> a(1, count);
    Rows<TypeParam> b(1, count);
    a.randomise(random);
    b.randomise(random);
    const std::int64_t most = random.integer(0, count - 1);
    const std::int64_t size = random.integer(0, count - 1);
    b.at(0, size) = a.at(0, size) = TypeParam(-200.0f);
    a.at(0, most) = TypeParam(-30.0f);
    b.at(0, most) = TypeParam(70.0f);
    const auto [change, largest] = max_change(a, b);
    EXPECT_EQ(change, 100.0f);
    float expected = 0;
    for (const double value : a.dense()) expected = std::max(expected, static_cast<float>(std::fabs(value)));
    EXPECT_EQ(largest, expected);
  }
}

TYPED_TEST(MaxChangeOf, NothingIsZero) {
  const Rows<TypeParam> none(1, 0);
  EXPECT_EQ(max_change(none, none), std::pair(0.0f, 0.0f));
}

// A state that is not a number must not pass for one that no longer changes.
TYPED_TEST(MaxChangeOf, ShowsNotANumber) {
  Random random;
  for (const std::int64_t count : {random.integer(1, 70), random.integer(40000, 50000)}) {
    Rows<TypeParam> a(1, count);
    a.randomise(random);
    Rows<TypeParam> b = a;
    const std::int64_t where = random.integer(0, count - 1);
    a.at(0, where) = Rows<TypeParam>::gap();
    EXPECT_TRUE(std::isnan(max_change(a, b).first));
    EXPECT_TRUE(std::isnan(max_change(a, b).second));
    EXPECT_TRUE(std::isnan(max_change(b, a).first));
  }
}

}  // namespace
}  // namespace kvloom
