#include "kernels/random.h"

#include <algorithm>

#include "tests/support/kernel_rows.h"

namespace kvloom {
namespace {

using test::Random;

// The known answers that Random123 publishes for philox4x32-10.
TEST(Philox, GivesThePublishedAnswers) {
  EXPECT_EQ(philox({{0, 0, 0, 0}}, 0), (RandomBlock{{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
  EXPECT_EQ(philox({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffff'ffffffff),
            (RandomBlock{{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}));
  EXPECT_EQ(philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0x299f31d0'a4093822),
            (RandomBlock{{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}));
}

TEST(StreamId, IsFnv1a) {
  EXPECT_EQ(stream_id(""), 0xcbf29ce484222325u);
  EXPECT_EQ(stream_id("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(stream_id("foobar"), 0x85944171f73967e8u);
}

std::vector<float> normals(std::uint64_t seed, std::uint64_t stream, std::int64_t first, std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  cpu::run(FillNormal{values.data(), count, seed, stream, first});
  return values;
}

TEST(FillNormal, PartsOfARangeHaveTheValuesOfTheWhole) {
  Random random;
  const std::uint64_t seed = random.engine()();
  const std::int64_t first = random.integer(0, std::int64_t{1} << 40);
  const auto whole = normals(seed, 7, first, 20000);
  for (int trial = 0; trial < 50; ++trial) {
    const std::int64_t begin = random.integer(0, 20000);
    const std::int64_t count = random.integer(0, 20000 - begin);
    const std::vector<float> expected(whole.begin() + begin, whole.begin() + begin + count);
    ASSERT_TRUE(test::equal_bits(normals(seed, 7, first + begin, count), expected)) << begin << " + " << count;
  }
  test::expect_equal_bits_for_any_thread_count([&] { return normals(seed, 7, first, 20000); });
}

TEST(FillNormal, HasTheMomentsOfANormal) {
  Random random;
  std::vector<float> values(400000);
  cpu::run(FillNormal{values.data(), 400000, random.engine()(), random.engine()(), 0, 3.0f, 0.5f});
  double moments[5] = {};
  for (const float value : values) {
    const double z = (test::to_double(value) - 3) / 0.5;
    for (int power = 1; power <= 4; ++power) moments[power] += std::pow(z, power) / 400000;
  }
  // Six standard errors: 1, sqrt(2), sqrt(15), sqrt(96) over sqrt(400000).
  EXPECT_NEAR(moments[1], 0, 0.0095);
  EXPECT_NEAR(moments[2], 1, 0.0135);
  EXPECT_NEAR(moments[3], 0, 0.037);
  EXPECT_NEAR(moments[4], 3, 0.093);
}

// Kolmogorov and Smirnov's distance; 2.5 / sqrt(n) is passed by chance once in 130,000 runs.
double distance(std::vector<double> sample, double (*distribution)(double)) {
  std::sort(sample.begin(), sample.end());
  double largest = 0;
  for (std::size_t i = 0; i < sample.size(); ++i) {
    const double below = distribution(sample[i]) - static_cast<double>(i) / static_cast<double>(sample.size());
    largest = std::max({largest, below, 1 / static_cast<double>(sample.size()) - below});
  }
  return largest * std::sqrt(static_cast<double>(sample.size()));
}

TEST(FillNormal, HasTheDistributionOfANormal) {
  Random random;
  const auto values = normals(random.engine()(), random.engine()(), 0, 100000);
  EXPECT_LT(distance(test::doubles(values), [](double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }), 2.5);
}

TEST(Uniform, IsFlatOnZeroToOne) {
  Random random;
  const std::uint64_t seed = random.engine()();
  test::Doubles values;
  for (std::uint64_t i = 0; i < 100000; ++i) values.push_back(uniform(seed, 5, i));
  EXPECT_GE(*std::min_element(values.begin(), values.end()), 0);
  EXPECT_LT(*std::max_element(values.begin(), values.end()), 1);
  EXPECT_LT(distance(values, [](double x) { return x; }), 2.5);
}

TEST(Uniform, SeedsAndStreamsAndNeighboursAreUncorrelated) {
  Random random;
  const std::uint64_t seed = random.engine()();
  const auto correlation = [](auto a, auto b) {
    double sum = 0;
    for (std::uint64_t i = 0; i < 100000; ++i) sum += (a(i) - 0.5) * (b(i) - 0.5) * 12;
    return sum / std::sqrt(100000.0);
  };
  const auto base = [&](std::uint64_t i) { return uniform(seed, 5, i); };
  // Six standard deviations.
  EXPECT_LT(std::fabs(correlation(base, [&](std::uint64_t i) { return uniform(seed, 6, i); })), 6);
  EXPECT_LT(std::fabs(correlation(base, [&](std::uint64_t i) { return uniform(seed + 1, 5, i); })), 6);
  EXPECT_LT(std::fabs(correlation(base, [&](std::uint64_t i) { return uniform(seed, 5, i + 1); })), 6);
}

}  // namespace
}  // namespace kvloom
