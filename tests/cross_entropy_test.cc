#include "kernels/cross_entropy.h"

#include "tests/support/kernel_rows.h"

namespace kvloom {
namespace {

using test::Doubles;
using test::Random;
using test::Rows;

// Loss and gradient of a nearly certain target are what is left of 1 in f32: a bound of 1e-6.
constexpr double kNearOne = 0.5;

double reference_loss(const Doubles& logits, std::int32_t target) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const double logit : logits) total += std::exp(logit - largest);
  return std::log(total) + (largest - logits[static_cast<std::size_t>(target)]);
}

template <typename T>
struct Problem {
  Problem(std::int64_t rows, std::int64_t vocab, double spread, Random& random)
      : logits(rows, vocab),
        grad(rows, vocab),
        targets(random.tokens(static_cast<std::size_t>(rows), vocab)),
        loss(static_cast<std::size_t>(rows), Rows<float>::gap()) {
    logits.randomise(random, spread);
  }
  void run(float scale = 1) { run(scale, grad.data.data()); }
  void run(float scale, T* grad_logits) {
    std::vector<float> maximum(loss.size(), Rows<float>::gap());
    auto total = maximum;
    auto target_logit = maximum;
    cpu::run(CrossEntropyStatistics{.logits = logits.data.data(),
                                    .targets = targets.data(),
                                    .maximum = maximum.data(),
                                    .total = total.data(),
                                    .target_logit = target_logit.data(),
                                    .rows = logits.rows,
                                    .vocab = logits.columns});
    cpu::run(CrossEntropy{.logits = logits.data.data(),
                          .targets = targets.data(),
                          .maximum = maximum.data(),
                          .total = total.data(),
                          .target_logit = target_logit.data(),
                          .loss = loss.data(),
                          .grad_logits = grad_logits,
                          .rows = logits.rows,
                          .vocab = logits.columns,
                          .grad_scale = scale,
                          .grad_dtype = DTypeOf<T>::value});
  }
  Doubles row(std::int64_t r) const {
    Doubles values;
    for (std::int64_t v = 0; v < logits.columns; ++v) values.push_back(logits(r, v));
    return values;
  }
  std::int32_t target(std::int64_t r) const { return targets[static_cast<std::size_t>(r)]; }

  Rows<float> logits;
  Rows<T> grad;
  std::vector<std::int32_t> targets;
  std::vector<float> loss;
};

template <typename T>
class Loss : public ::testing::Test {};
TYPED_TEST_SUITE(Loss, test::ComputeTypes);

TYPED_TEST(Loss, AgreesWithDoublesAndItsGradientIsItsSlope) {
  Random random;
  for (int trial = 0; trial < 20; ++trial) {
    Problem<TypeParam> problem(random.integer(1, 6), random.integer(1, 90), random.real(0.1, 4), random);
    const double scale = random.real(0.1, 3);
    Doubles losses;
    Doubles gradient;
    for (std::int64_t r = 0; r < problem.logits.rows; ++r) {
      const Doubles logits = problem.row(r);
      losses.push_back(reference_loss(logits, problem.target(r)));
      for (std::size_t v = 0; v < logits.size(); ++v) {
        const auto loss = [&](const Doubles& x) { return reference_loss(x, problem.target(r)); };
        gradient.push_back(static_cast<double>(static_cast<float>(scale)) * test::slope(loss, logits, v));
      }
    }
    problem.run(static_cast<float>(scale));
    test::expect_close(test::doubles(problem.loss), losses, 1e-5, "loss", kNearOne);
    test::expect_close(problem.grad.dense(), gradient, test::rounding_of<TypeParam>(), "gradient", kNearOne * scale);
  }
}

TYPED_TEST(Loss, IgnoredRowsHaveNeitherLossNorGradient) {
  Random random;
  Problem<TypeParam> problem(3, 19, 1, random);
  problem.targets[1] = kIgnoredTarget;
  problem.run();
  EXPECT_EQ(problem.loss[1], 0);
  EXPECT_GT(problem.loss[0] * problem.loss[2], 0);
  for (std::int64_t v = 0; v < 19; ++v) {
    EXPECT_EQ(problem.grad(1, v), 0);
    EXPECT_NE(problem.grad(0, v), 0);
  }
}

// Logits near 1e5 are 0.008 apart in f32; what is computed from their differences must not show it.
TYPED_TEST(Loss, KeepsItsPrecisionUnderHugeLogits) {
  Random random;
  Problem<TypeParam> problem(8, 37, 1, random);
  const double offset = random.flip() ? 1e5 : -1e5;
  for (float& logit : problem.logits.data) logit = static_cast<float>(static_cast<double>(logit) + offset);
  problem.run();
  Doubles losses;
  Doubles gradient;
  for (std::int64_t r = 0; r < 8; ++r) {
    const Doubles logits = problem.row(r);
    losses.push_back(reference_loss(logits, problem.target(r)));
    for (std::size_t v = 0; v < logits.size(); ++v) {
      const bool is_target = static_cast<std::int32_t>(v) == problem.target(r);
      gradient.push_back(std::exp(-reference_loss(logits, static_cast<std::int32_t>(v))) - (is_target ? 1 : 0));
    }
  }
  test::expect_close(test::doubles(problem.loss), losses, 1e-5, "loss", kNearOne);
  test::expect_close(problem.grad.dense(), gradient, test::rounding_of<TypeParam>(), "gradient", kNearOne);
}

TYPED_TEST(Loss, NeverOverflows) {
  Random random;
  Problem<TypeParam> problem(2, 9, 1, random);
  problem.targets = {3, 4};
  problem.logits.at(0, 3) = 1e30f;
  problem.logits.at(1, 3) = 1e30f;
  problem.run();
  EXPECT_EQ(problem.loss[0], 0);
  EXPECT_FLOAT_EQ(problem.loss[1], 1e30f);
  EXPECT_EQ(problem.grad(1, 3), 1);
  EXPECT_EQ(problem.grad(1, 4), -1);
}

TEST(LossAlone, NeedsNoGradientAndGivesTheSame) {
  Random random;
  Problem<float> problem(5, 41, 2, random);
  problem.run();
  const auto with_gradient = problem.loss;
  problem.run(1, nullptr);
  EXPECT_TRUE(test::equal_bits(problem.loss, with_gradient));
}

TEST(LossAlone, GradientWritesOverLogits) {
  Random random;
  Problem<float> problem(5, 41, 2, random);
  problem.targets[2] = kIgnoredTarget;
  problem.run(0.5f);
  problem.run(0.5f, problem.logits.data.data());
  EXPECT_TRUE(test::equal_bits(problem.logits.data, problem.grad.data));
}

// What ranks that share the vocabulary do: statistics of each shard, joined, then each shard's gradient.
TEST(VocabularyShards, GiveTheLossAndGradientOfTheWhole) {
  Random random;
  Problem<float> problem(7, 83, 3, random);
  problem.targets[2] = kIgnoredTarget;
  problem.run(0.7f);
  const std::int64_t cut = random.integer(1, 82);
  struct Shard {
    std::int64_t first;
    std::vector<float> logits, maximum, total, target_logit, loss, grad;
  };
  std::vector<Shard> shards;
  for (const auto& [first, end] : {std::pair(std::int64_t{0}, cut), std::pair(cut, std::int64_t{83})}) {
    Shard shard{.first = first};
    for (std::int64_t r = 0; r < 7; ++r) {
      for (std::int64_t v = first; v < end; ++v) shard.logits.push_back(problem.logits.at(r, v));
    }
    for (auto* rows : {&shard.maximum, &shard.total, &shard.target_logit, &shard.loss}) rows->resize(7);
    shard.grad.resize(shard.logits.size());
    cpu::run(CrossEntropyStatistics{shard.logits.data(), problem.targets.data(), shard.maximum.data(),
                                    shard.total.data(), shard.target_logit.data(), 7, end - first, first});
    shards.push_back(std::move(shard));
  }
  std::vector<float> maximum(7);
  std::vector<float> total(7, 0.0f);
  std::vector<float> target_logit(7, 0.0f);
  for (std::size_t r = 0; r < 7; ++r) maximum[r] = std::max(shards[0].maximum[r], shards[1].maximum[r]);
  for (Shard& shard : shards) {
    cpu::run(RescaleTotals{shard.total.data(), shard.maximum.data(), maximum.data(), 7});
    for (std::size_t r = 0; r < 7; ++r) {
      total[r] += shard.total[r];
      target_logit[r] += shard.target_logit[r];
    }
  }
  for (Shard& shard : shards) {
    const auto vocab = static_cast<std::int64_t>(shard.logits.size()) / 7;
    cpu::run(CrossEntropy{shard.logits.data(), problem.targets.data(), maximum.data(), total.data(),
                          target_logit.data(), shard.loss.data(), shard.grad.data(), 7, vocab, shard.first, 0.7f,
                          DType::kF32});
    test::expect_close(test::doubles(shard.loss), test::doubles(problem.loss), 1e-5, "loss", kNearOne);
    for (std::int64_t r = 0; r < 7; ++r) {
      for (std::int64_t v = 0; v < vocab; ++v) {
        EXPECT_NEAR(shard.grad[static_cast<std::size_t>(r * vocab + v)], problem.grad(r, shard.first + v), 1e-6);
      }
    }
  }
}

TEST(VocabularyShards, OfMaskedLogitsAloneAddNothing) {
  for (const std::int64_t vocab : {std::int64_t{1}, std::int64_t{37}}) {
    const std::vector<float> logits(static_cast<std::size_t>(vocab), -std::numeric_limits<float>::infinity());
    const std::int32_t target = 50;
    float maximum = 0;
    float total = 1;
    float target_logit = 1;
    cpu::run(CrossEntropyStatistics{logits.data(), &target, &maximum, &total, &target_logit, 1, vocab});
    EXPECT_EQ(maximum, logits[0]);
    EXPECT_EQ(total, 0);
    const float of_all = 3;
    cpu::run(RescaleTotals{&total, &maximum, &of_all, 1});
    EXPECT_EQ(total, 0);
  }
}

TEST(LossAlone, ShowsNotANumber) {
  Random random;
  Problem<float> problem(1, 41, 2, random);
  problem.logits.at(0, random.integer(0, 40)) = Rows<float>::gap();
  problem.run();
  EXPECT_TRUE(std::isnan(problem.loss[0]));
}

}  // namespace
}  // namespace kvloom
