#include "kernels/elementwise.h"

#include <bit>

#include "tests/support/kernel_rows.h"

namespace kvloom {
namespace {

using test::Doubles;
using test::Random;
using test::Rows;

template <typename T>
class Elementwise : public ::testing::Test {};
TYPED_TEST_SUITE(Elementwise, test::ComputeTypes);

TYPED_TEST(Elementwise, AddRoundsTheSumOnceAndMayWriteOverEither) {
  Random random;
  for (const std::int64_t count : {random.integer(0, 70), random.integer(40000, 50000)}) {
    Rows<TypeParam> a(1, count);
    Rows<TypeParam> b(1, count);
    a.randomise(random);
    b.randomise(random);
    std::vector<TypeParam> expected;
    for (std::int64_t i = 0; i < count; ++i) {
      expected.push_back(TypeParam(static_cast<float>(a.at(0, i)) + static_cast<float>(b.at(0, i))));
    }
    auto over_b = b.data;
    cpu::run(Add{a.data.data(), over_b.data(), over_b.data(), count, DTypeOf<TypeParam>::value});
    EXPECT_TRUE(test::equal_bits(over_b, expected));
    cpu::run(Add{a.data.data(), b.data.data(), a.data.data(), count, DTypeOf<TypeParam>::value});
    EXPECT_TRUE(test::equal_bits(a.data, expected));
  }
}

TYPED_TEST(Elementwise, BiasIsAddedToEveryRowAndNotToGaps) {
  Random random;
  for (int trial = 0; trial < 10; ++trial) {
    const std::int64_t columns = random.integer(1, 70);
    Rows<TypeParam> data(random.integer(0, 9), columns, columns + random.integer(0, 5));
    data.randomise(random);
    const auto bias = random.normals(static_cast<std::size_t>(columns));
    Doubles expected = data.dense();
    for (std::size_t i = 0; i < expected.size(); ++i) {
      expected[i] += test::to_double(bias[i % static_cast<std::size_t>(columns)]);
    }
    cpu::run(BiasForward{data.data.data(), bias.data(), data.rows, columns, data.stride, DTypeOf<TypeParam>::value});
    test::expect_close(data.dense(), expected, test::rounding_of<TypeParam>(), "biased");
    data.expect_gaps_untouched();
  }
}

TYPED_TEST(Elementwise, BiasGradientAddsRowsWithEqualBitsForAnyThreadCount) {
  Random random;
  const std::int64_t columns = random.integer(60, 70);
  Rows<TypeParam> grad(random.integer(600, 700), columns, columns + random.integer(0, 5));
  grad.randomise(random);
  const auto start = random.normals(static_cast<std::size_t>(columns));
  Doubles expected = test::doubles(start);
  for (std::int64_t r = 0; r < grad.rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) expected[static_cast<std::size_t>(c)] += grad(r, c);
  }
  test::expect_equal_bits_for_any_thread_count([&] {
    auto bias = start;
    cpu::run(BiasBackward{grad.data.data(), bias.data(), grad.rows, columns, grad.stride, DTypeOf<TypeParam>::value});
    test::expect_close(test::doubles(bias), expected, 1e-5, "bias");
    return bias;
  });
}

template <typename To, typename From>
std::vector<To> cast_to(const std::vector<From>& from, DType from_dtype, DType to_dtype) {
  std::vector<To> to(from.size());
  cpu::run(Cast{from.data(), to.data(), 1, static_cast<std::int64_t>(from.size()), from_dtype, to_dtype});
  return to;
}

// What the 16 bits of an f16 mean, by IEEE 754.
double meaning_of_f16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return exponent == 0 ? sign * std::ldexp(fraction, -24) : sign * std::ldexp(1024 + fraction, exponent - 25);
}

TEST(CastKernel, EveryF16HasItsMeaningInF32AndComesBack) {
  std::vector<std::uint16_t> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  const auto wide = cast_to<float>(all, DType::kF16, DType::kF32);
  const auto back = cast_to<std::uint16_t>(wide, DType::kF32, DType::kF16);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const double meaning = meaning_of_f16(all[i]);
    if (std::isnan(meaning)) {
      ASSERT_TRUE(std::isnan(wide[i])) << i;
      ASSERT_TRUE(std::isnan(meaning_of_f16(back[i]))) << i;
    } else {
      ASSERT_EQ(test::to_double(wide[i]), meaning) << i;
      ASSERT_EQ(back[i], all[i]) << i;
    }
  }
}

TEST(CastKernel, EveryBf16ComesBackFromF32) {
  std::vector<std::uint16_t> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  const auto wide = cast_to<float>(all, DType::kBF16, DType::kF32);
  const auto back = cast_to<std::uint16_t>(wide, DType::kF32, DType::kBF16);
  for (std::size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(wide[i]), static_cast<std::uint32_t>(i) << 16) << i;
    if (std::isnan(wide[i])) {
      ASSERT_GT(back[i] & 0x7fff, 0x7f80) << i;
    } else {
      ASSERT_EQ(back[i], all[i]) << i;
    }
  }
}

// Around every tie between two neighbours, for 2000 random bf16: below, at and above it.
TEST(CastKernel, RoundsTiesToEvenFromF32AndFromF64) {
  Random random;
  std::vector<float> single;
  std::vector<double> wide;
  std::vector<std::uint16_t> expected_single;
  std::vector<std::uint16_t> expected_wide;
  for (int trial = 0; trial < 2000; ++trial) {
    const auto low = static_cast<std::uint32_t>(random.integer(0x0080, 0x7f7e) | (random.flip() ? 0x8000 : 0));
    const auto even = static_cast<std::uint16_t>(low + (low & 1));
    const std::uint16_t nearest[] = {static_cast<std::uint16_t>(low), even, static_cast<std::uint16_t>(low + 1)};
    const std::uint32_t tie = low << 16 | 0x8000u;
    const std::uint64_t wide_tie = std::bit_cast<std::uint64_t>(static_cast<double>(std::bit_cast<float>(tie)));
    for (int side = -1; side <= 1; ++side) {
      single.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(static_cast<std::int64_t>(tie) + side)));
      expected_single.push_back(nearest[side + 1]);
      wide.push_back(std::bit_cast<double>(wide_tie + static_cast<std::uint64_t>(static_cast<std::int64_t>(side))));
      expected_wide.push_back(nearest[side + 1]);
    }
  }
  EXPECT_EQ(cast_to<std::uint16_t>(single, DType::kF32, DType::kBF16), expected_single);
  EXPECT_EQ(cast_to<std::uint16_t>(wide, DType::kF64, DType::kBF16), expected_wide);
}

TEST(CastKernel, NarrowsF64AsTheHardwareDoesAndOverflowsToInfinity) {
  Random random;
  auto wide = random.normals<double>(999, 1e3);
  wide.push_back(1e300);
  const auto narrow = cast_to<float>(wide, DType::kF64, DType::kF32);
  for (std::size_t i = 0; i < wide.size(); ++i) EXPECT_EQ(narrow[i], static_cast<float>(wide[i]));
  const std::vector<double> large{1e300, -1e300, 1e-300, Rows<float>::gap()};
  const auto least = cast_to<BFloat16>(large, DType::kF64, DType::kBF16);
  EXPECT_EQ(least[0].bits, 0x7f80);
  EXPECT_EQ(least[1].bits, 0xff80);
  EXPECT_EQ(least[2].bits, 0);
  EXPECT_TRUE(std::isnan(test::to_double(least[3])));
}

TEST(CastKernel, KeepsToRowsOfItsStrides) {
  Random random;
  const std::int64_t columns = random.integer(1, 9000);
  Rows<float> input(5, columns, columns + 3);
  Rows<BFloat16> output(5, columns, columns + 2);
  input.randomise(random);
  cpu::run(
      Cast{input.data.data(), output.data.data(), 5, columns, DType::kF32, DType::kBF16, input.stride, output.stride});
  for (std::int64_t r = 0; r < 5; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) ASSERT_EQ(output.at(r, c).bits, BFloat16(input.at(r, c)).bits);
  }
  output.expect_gaps_untouched();
}

}  // namespace
}  // namespace kvloom
