#include "train/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace kvloom {
namespace {

// How far `step` is on the way from `begin` to `end`, in [0, 1].
double progress(double step, double begin, double end) {
  if (step >= end) return 1;
  return std::max(0.0, (step - begin) / (end - begin));
}

double decay_begin(const proto::TrainConfig& config) {
  const std::uint32_t length = config.decay_steps() > 0 ? config.decay_steps() : std::max(1u, config.steps() / 10);
  return std::max(static_cast<double>(config.steps()) - length, static_cast<double>(config.warmup_steps()));
}

// What is left of the way from the minimum up to the full rate, in [0, 1].
double height(double step, const proto::TrainConfig& config) {
  const double warmup = config.warmup_steps();
  const double steps = config.steps();
  switch (config.schedule()) {
    case proto::TrainConfig::COSINE:
      return 0.5 * (1 + std::cos(std::numbers::pi * progress(step, warmup, steps)));
    case proto::TrainConfig::LINEAR:
      return 1 - progress(step, warmup, steps);
    case proto::TrainConfig::WARMUP_STABLE_DECAY:
      return 1 - progress(step, decay_begin(config), steps);
    default:
      return 1;
  }
}

}  // namespace

double learning_rate_at(std::uint64_t step, const proto::TrainConfig& config) {
  const double full = config.learning_rate();
  if (step < config.warmup_steps()) return full * static_cast<double>(step) / config.warmup_steps();
  const double minimum = config.has_minimum_learning_rate() ? config.minimum_learning_rate() : full / 10;
  return minimum + (full - minimum) * height(static_cast<double>(step), config);
}

}  // namespace kvloom
