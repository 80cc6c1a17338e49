#include "train/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace kvloom {
namespace {

// How far from `begin` to `end` the step after `done` is, 0 to 1.
double progress(double done, double begin, double end) {
  return end > begin ? std::clamp((done - begin) / (end - begin), 0.0, 1.0) : 1.0;
}

}  // namespace

double learning_rate(std::uint64_t done, const proto::TrainConfig& config) {
  const auto at = static_cast<double>(done);
  const auto warmup = static_cast<double>(config.warmup_steps());
  const auto last = static_cast<double>(config.steps()) - 1;
  const double highest = config.learning_rate();
  if (at < warmup) return highest * (at + 1) / warmup;
  const double drop = highest - config.minimum_learning_rate();
  switch (config.schedule()) {
    case proto::TrainConfig::COSINE:
      return highest - drop * (1 - std::cos(std::numbers::pi * progress(at, warmup, last))) / 2;
    case proto::TrainConfig::LINEAR:
      return highest - drop * progress(at, warmup, last);
    case proto::TrainConfig::WARMUP_STABLE_DECAY:
      return highest - drop * progress(at, std::max(warmup, last - static_cast<double>(config.decay_steps())), last);
    default:
      return highest;
  }
}

}  // namespace kvloom
