#include "infer/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "kernels/error.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

constexpr std::size_t kVocab = 12;

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  for (const float logit : logits) p.push_back(std::exp(logit / temperature));
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= total;
  return p;
}

std::vector<std::size_t> by_probability(const std::vector<double>& p) {
  std::vector<std::size_t> order(p.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return p[a] > p[b]; });
  return order;
}

std::set<std::int32_t> drawn(const std::vector<float>& logits, const SamplingParameters& parameters) {
  std::set<std::int32_t> tokens;
  for (std::uint64_t position = 0; position < 3000; ++position) {
    tokens.insert(sample_token(logits, {}, parameters, position));
  }
  return tokens;
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowestIdAmongEquals) {
  test::Random random;
  for (int repeat = 0; repeat < 50; ++repeat) {
    std::vector<float> logits(kVocab);
    for (float& logit : logits) logit = static_cast<float>(random.integer(0, 3));
    const auto largest = std::max_element(logits.begin(), logits.end()) - logits.begin();
    EXPECT_EQ(sample_token(logits, {}, {.temperature = 0, .top_p = 0.1F}, 5), largest);
  }
}

TEST(Sampler, FrequenciesFollowTheSoftmaxAtTheTemperature) {
  test::Random random;
  const std::vector<float> logits = random.normals(kVocab);
  const auto temperature = static_cast<float>(random.real(0.5, 2));
  constexpr int kDraws = 40000;
  std::vector<int> counts(kVocab, 0);
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    ++counts[static_cast<std::size_t>(
        sample_token(logits, {}, {.temperature = temperature, .seed = random.seed()}, i))];
  }
  const std::vector<double> p = softmax(logits, temperature);
  for (std::size_t t = 0; t < kVocab; ++t) {
    const double deviation = std::sqrt(kDraws * p[t] * (1 - p[t]));
    EXPECT_NEAR(counts[t], kDraws * p[t], 6 * deviation) << "token " << t;
  }
}

TEST(Sampler, TopKDrawsOnlyTheKMostProbable) {
  test::Random random;
  const std::vector<float> logits = random.normals(kVocab, 0.3);
  const std::vector<std::size_t> order = by_probability(softmax(logits, 1));
  for (const std::size_t k : {1u, 3u, 7u}) {
    std::set<std::int32_t> expected;
    for (std::size_t i = 0; i < k; ++i) expected.insert(static_cast<std::int32_t>(order[i]));
    EXPECT_EQ(drawn(logits, {.top_k = static_cast<std::int64_t>(k)}), expected);
  }
}

TEST(Sampler, TopPDrawsTheSmallestSetThatReachesIt) {
  test::Random random;
  const std::vector<float> logits = random.normals(kVocab, 0.3);
  const std::vector<double> p = softmax(logits, 1);
  for (const float top_p : {0.05F, 0.5F, 0.8F}) {
    std::set<std::int32_t> expected;
    double reached = 0;
    for (const std::size_t t : by_probability(p)) {
      if (!expected.empty() && reached >= top_p) break;
      expected.insert(static_cast<std::int32_t>(t));
      reached += p[t];
    }
    EXPECT_EQ(drawn(logits, {.top_p = top_p}), expected);
  }
}

TEST(Sampler, MinPDrawsWhatIsProbableEnoughBesidesTheMostProbable) {
  test::Random random;
  const std::vector<float> logits = random.normals(kVocab, 0.5);
  const std::vector<double> p = softmax(logits, 0.7F);
  const double most = *std::max_element(p.begin(), p.end());
  std::set<std::int32_t> expected;
  for (std::size_t t = 0; t < kVocab; ++t) {
    if (p[t] >= 0.3 * most) expected.insert(static_cast<std::int32_t>(t));
  }
  EXPECT_EQ(drawn(logits, {.temperature = 0.7F, .min_p = 0.3F}), expected);
}

TEST(Sampler, MinPOfOneLeavesTheMostProbableAlone) {
  test::Random random;
  for (int repeat = 0; repeat < 20; ++repeat) {
    const std::vector<float> logits = random.normals(kVocab, 0.1);
    const auto most = std::max_element(logits.begin(), logits.end()) - logits.begin();
    const float temperature = static_cast<float>(random.real(0.3, 3));
    EXPECT_EQ(drawn(logits, {.temperature = temperature, .min_p = 1}), std::set{static_cast<std::int32_t>(most)});
  }
}

TEST(Sampler, TopPIsTakenOfWhatTopKLeft) {
  // Four equals: top-k leaves two, of which half is one.
  const std::vector<float> logits(4, 0.0F);
  EXPECT_EQ(drawn(logits, {.top_k = 2, .top_p = 0.5F}), (std::set<std::int32_t>{0}));
}

TEST(Sampler, LimitsThatLeaveAllChangeNoDraw) {
  test::Random random;
  const std::vector<float> logits = random.normals(kVocab, 0.3);
  const SamplingParameters free{.seed = random.seed()};
  SamplingParameters limited = free;
  limited.top_k = kVocab;
  limited.top_p = 0.9999F;
  for (std::uint64_t position = 0; position < 50; ++position) {
    EXPECT_EQ(sample_token(logits, {}, limited, position), sample_token(logits, {}, free, position)) << position;
  }
}

TEST(Sampler, RepetitionPenaltyLowersATokenOnceWhateverItsSign) {
  const SamplingParameters greedy{.temperature = 0, .repetition_penalty = 2};
  const std::vector<std::int32_t> twice{0, 0};
  EXPECT_EQ(sample_token(std::vector<float>{3, 1.4F}, {twice}, greedy, 0), 0);  // 1.5 after one penalty
  EXPECT_EQ(sample_token(std::vector<float>{3, 1.6F}, {twice}, greedy, 0), 1);
  EXPECT_EQ(sample_token(std::vector<float>{-1, -1.9F}, {twice}, greedy, 0), 1);
  EXPECT_EQ(sample_token(std::vector<float>{-1, -2.1F}, {twice}, greedy, 0), 0);
}

TEST(Sampler, AChoiceDependsOnSeedAndPositionAlone) {
  test::Random random;
  const std::vector<float> logits = random.normals(1000, 0.1);
  const SamplingParameters one{.seed = 1}, two{.seed = 2};
  int other_seed = 0;
  int other_position = 0;
  for (std::uint64_t position = 0; position < 100; ++position) {
    const std::int32_t token = sample_token(logits, {}, one, position);
    EXPECT_EQ(sample_token(logits, {}, one, position), token);
    other_seed += static_cast<int>(sample_token(logits, {}, two, position) != token);
    other_position += static_cast<int>(sample_token(logits, {}, one, position + 1) != token);
  }
  EXPECT_GT(other_seed, 90);
  EXPECT_GT(other_position, 90);
}

TEST(Sampler, BrokenLogitsAreRefusedAndMaskedOnesNeverDrawn) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_THROW(sample_token(std::vector<float>{0, NAN}, {}, {}, 0), Error);
  EXPECT_THROW(sample_token(std::vector<float>{0, kInfinity}, {}, {}, 0), Error);
  EXPECT_THROW(sample_token(std::vector<float>{-kInfinity}, {}, {}, 0), Error);
  EXPECT_THROW(sample_token(std::vector<float>{}, {}, {}, 0), Error);
  EXPECT_EQ(drawn({-kInfinity, 0, -kInfinity, 0}, {}), (std::set<std::int32_t>{1, 3}));
}

TEST(Sampler, LogitsThatThePenaltyTakesOutOfRangeAreRefused) {
  const std::vector<std::int32_t> seen{1};
  const SamplingParameters raised{.repetition_penalty = 0.01F};
  EXPECT_THROW(sample_token(std::vector<float>{0, 1e38F}, {seen}, raised, 0), Error);
  const SamplingParameters lowered{.repetition_penalty = 100};
  const std::vector<std::int32_t> both{0, 1};
  EXPECT_THROW(sample_token(std::vector<float>{-1e38F, -2e38F}, {both}, lowered, 0), Error);
  EXPECT_EQ(sample_token(std::vector<float>{0, -1e38F}, {both}, lowered, 0), 0) << "one that is left is drawn";
}

TEST(Sampler, ParametersOutOfRangeAreRefused) {
  EXPECT_THROW(check_sampling({.temperature = -1}), InputError);
  EXPECT_THROW(check_sampling({.temperature = NAN}), InputError);
  EXPECT_THROW(check_sampling({.top_k = -1}), InputError);
  EXPECT_THROW(check_sampling({.top_p = 0}), InputError);
  EXPECT_THROW(check_sampling({.min_p = 1.5F}), InputError);
  for (const float penalty : {0.0F, 1e-39F, 0.0099F, 100.1F, std::numeric_limits<float>::infinity(), NAN, -1.0F}) {
    EXPECT_THROW(check_sampling({.repetition_penalty = penalty}), InputError) << penalty;
  }
  EXPECT_NO_THROW(check_sampling({.repetition_penalty = 0.01F}));
  EXPECT_NO_THROW(check_sampling({.repetition_penalty = 100}));
}

}  // namespace
}  // namespace kvloom
