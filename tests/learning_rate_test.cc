#include "train/learning_rate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/random.h"
#include "tests/support/reference_training.h"

namespace kvloom {
namespace {

using proto::TrainConfig;

TrainConfig random_config(test::Random& random, TrainConfig::Schedule schedule) {
  TrainConfig config;
  config.set_schedule(schedule);
  config.set_steps(static_cast<std::uint32_t>(random.integer(20, 500)));
  config.set_warmup_steps(static_cast<std::uint32_t>(random.integer(0, 9)));
  config.set_learning_rate(random.real(1e-4, 1e-2));
  config.set_minimum_learning_rate(config.learning_rate() * random.real(0, 0.5));
  config.set_decay_steps(static_cast<std::uint32_t>(random.integer(1, 10)));
  return config;
}

constexpr std::array kSchedules{TrainConfig::COSINE, TrainConfig::LINEAR, TrainConfig::WARMUP_STABLE_DECAY,
                                TrainConfig::CONSTANT};

TEST(LearningRate, RisesAlongALineThenNeverRisesAgain) {
  test::Random random;
  for (const auto schedule : kSchedules) {
    const TrainConfig config = random_config(random, schedule);
    const double full = config.learning_rate();
    for (std::uint32_t step = 1; step <= config.warmup_steps(); ++step) {
      EXPECT_NEAR(learning_rate_at(step, config), full * step / config.warmup_steps(), 1e-15);
    }
    for (std::uint32_t step = std::max(1u, config.warmup_steps()); step < config.steps() + 5; ++step) {
      EXPECT_LE(learning_rate_at(step + 1, config), learning_rate_at(step, config));
    }
  }
}

TEST(LearningRate, EndsAtTheMinimumAndStaysThere) {
  test::Random random;
  for (const auto schedule : {TrainConfig::COSINE, TrainConfig::LINEAR, TrainConfig::WARMUP_STABLE_DECAY}) {
    const TrainConfig config = random_config(random, schedule);
    EXPECT_NEAR(learning_rate_at(config.steps(), config), config.minimum_learning_rate(), 1e-15);
    EXPECT_NEAR(learning_rate_at(config.steps() + 100, config), config.minimum_learning_rate(), 1e-15);
  }
}

TEST(LearningRate, PassesThroughTheKnownPointsOfEachSchedule) {
  TrainConfig config;
  config.set_steps(110);
  config.set_warmup_steps(10);
  config.set_learning_rate(1);
  config.set_minimum_learning_rate(0.2);
  config.set_schedule(TrainConfig::COSINE);
  EXPECT_NEAR(learning_rate_at(60, config), 0.6, 1e-12);
  EXPECT_NEAR(learning_rate_at(35, config), 0.2 + 0.8 * (0.5 + std::sqrt(0.125)), 1e-12);
  config.set_schedule(TrainConfig::LINEAR);
  EXPECT_NEAR(learning_rate_at(35, config), 0.8, 1e-12);
  config.set_schedule(TrainConfig::CONSTANT);
  EXPECT_EQ(learning_rate_at(110, config), 1);
  config.set_schedule(TrainConfig::WARMUP_STABLE_DECAY);
  config.set_decay_steps(20);
  EXPECT_EQ(learning_rate_at(90, config), 1);
  EXPECT_NEAR(learning_rate_at(100, config), 0.6, 1e-12);
  config.set_decay_steps(0);  // a tenth: 11
  EXPECT_EQ(learning_rate_at(99, config), 1);
  EXPECT_LT(learning_rate_at(100, config), 1);
}

TEST(LearningRate, WarmUpOfTheWholeRunIsFinite) {
  test::Random random;
  for (const auto schedule : kSchedules) {
    TrainConfig config = random_config(random, schedule);
    config.set_warmup_steps(config.steps());
    for (std::uint32_t step = 1; step <= config.steps() + 1; ++step) {
      EXPECT_TRUE(std::isfinite(learning_rate_at(step, config)));
    }
  }
}

// The formulas once more, over random settings: a minimum of 0, decay that begins inside warm-up, steps beyond the
// last.
TEST(LearningRate, IsThatOfItsFormulaAtEveryStep) {
  test::Random random;
  for (int round = 0; round < 50; ++round) {
    for (const auto schedule : kSchedules) {
      TrainConfig config = random_config(random, schedule);
      config.set_warmup_steps(round == 0 ? config.steps()
                                         : static_cast<std::uint32_t>(random.integer(0, config.steps())));
      config.set_decay_steps(static_cast<std::uint32_t>(random.integer(0, config.steps() + 3)));
      if (random.flip()) config.set_minimum_learning_rate(0);
      for (std::uint32_t step = 1; step <= config.steps() + 3; ++step) {
        ASSERT_NEAR(learning_rate_at(step, config), test::reference_rate(step, config), 1e-12 * config.learning_rate())
            << config.ShortDebugString() << " at step " << step;
      }
    }
  }
}

}  // namespace
}  // namespace kvloom
