// Training on one rank in plain double precision, written from the papers' formulas and the design alone: gradients are
// difference quotients of the reference model's loss, the update is algorithm 2 of Loshchilov and Hutter 2019, clipping
// is that of Pascanu et al. 2013. Slow, and meant to be read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>
#include <string>
#include <vector>

#include "proto/run.pb.h"
#include "tests/support/reference_model.h"

namespace kvloom::test {

// Of a sequence; a target of -1 does not count.
struct ReferenceSequence {
  std::vector<int> tokens;
  std::vector<int> targets;
};

// The rate of step 1, 2, ... as proto/run.proto describes the schedules.
inline double reference_rate(std::uint32_t step, const proto::TrainConfig& train) {
  const double peak = train.learning_rate();
  const double low = train.minimum_learning_rate();
  const double warmup = train.warmup_steps();
  const double last = train.steps();
  const double at = std::min<double>(step, last);
  if (at < warmup) return peak * at / warmup;
  if (last == warmup) return train.schedule() == proto::TrainConfig::CONSTANT ? peak : low;
  const double way = (at - warmup) / (last - warmup);
  switch (train.schedule()) {
    case proto::TrainConfig::COSINE:
      return low + (peak - low) * (1 + std::cos(std::numbers::pi * way)) / 2;
    case proto::TrainConfig::LINEAR:
      return peak + (low - peak) * way;
    case proto::TrainConfig::WARMUP_STABLE_DECAY: {
      const double length = train.decay_steps() == 0 ? std::max(1u, train.steps() / 10) : train.decay_steps();
      const double begin = std::max(last - length, warmup);
      return at <= begin ? peak : peak + (low - peak) * (at - begin) / (last - begin);
    }
    default:
      return peak;
  }
}

// Norm gains and biases are vectors; everything else is a matrix.
inline bool is_vector(const std::string& name) { return name.ends_with("norm.weight") || name.ends_with(".bias"); }

class ReferenceTraining {
 public:
  struct Figures {
    double loss;  // nats per token, before the update
    double learning_rate;
    double gradient_norm;  // before clipping
  };

  // `run` is filled (core/config.h); `weights` are flat as reference.layout() says.
  ReferenceTraining(const proto::RunConfig& run, std::vector<double> weights)
      : run_(run),
        reference_(ModelConfig::from_proto(run.model())),
        weights_(std::move(weights)),
        momentum_(weights_.size(), 0.0),
        variance_(weights_.size(), 0.0) {}

  Figures step(const std::vector<ReferenceSequence>& batch) {
    const proto::TrainConfig& train = run_.train();
    ++steps_;
    const Figures figures{.loss = loss(batch),
                          .learning_rate = reference_rate(steps_, train),
                          .gradient_norm = norm_of(gradient_ = gradient(batch))};
    const bool clipped = train.gradient_clip() > 0 && figures.gradient_norm > train.gradient_clip();
    update(figures.learning_rate, clipped ? train.gradient_clip() / figures.gradient_norm : 1.0);
    return figures;
  }

  // Of the weights as they are, as training sees it: nats per counted target.
  double loss(const std::vector<ReferenceSequence>& batch) const { return loss_at(weights_, batch); }
  std::vector<double> gradient(const std::vector<ReferenceSequence>& batch) const {
    constexpr double kStep = 1e-5;
    const auto count = static_cast<std::int64_t>(weights_.size());
    std::vector<double> gradient(weights_.size());
#pragma omp parallel
    {
      std::vector<double> moved = weights_;
#pragma omp for
      for (std::int64_t i = 0; i < count; ++i) {
        const auto at = static_cast<std::size_t>(i);
        moved[at] = weights_[at] + kStep;
        const double above = loss_at(moved, batch);
        moved[at] = weights_[at] - kStep;
        const double below = loss_at(moved, batch);
        moved[at] = weights_[at];
        gradient[at] = (above - below) / (2 * kStep);
      }
    }
    return gradient;
  }

  const ParameterLayout& layout() const { return reference_.layout(); }
  const std::vector<double>& weights() const { return weights_; }
  const std::vector<double>& momentum() const { return momentum_; }
  const std::vector<double>& variance() const { return variance_; }

  static double norm_of(std::span<const double> values) {
    double squares = 0;
    for (const double value : values) squares += value * value;
    return std::sqrt(squares);
  }

 private:
  double loss_at(const std::vector<double>& weights, const std::vector<ReferenceSequence>& batch) const {
    const Passes passes = passes_of(run_.passes());
    double sum = 0;
    double counted = 0;
    for (const ReferenceSequence& sequence : batch) {
      Rows logits =
          reference_.iterated(weights, weights_, sequence.tokens, passes.without_gradient, passes.with_gradient);
      std::vector<int> targets;
      Rows counting;
      for (std::size_t t = 0; t < logits.size(); ++t) {
        if (sequence.targets[t] < 0) continue;
        targets.push_back(sequence.targets[t]);
        counting.push_back(std::move(logits[t]));
      }
      const auto here = static_cast<double>(targets.size());
      if (!targets.empty()) sum += ReferenceModel::mean_loss(counting, targets) * here;
      counted += here;
    }
    return sum / counted;
  }

  void update(double rate, double scale) {
    const proto::TrainConfig& train = run_.train();
    for (const Parameter& parameter : layout().all()) {
      const double decay = is_vector(parameter.name) ? 0.0 : train.weight_decay();
      for (std::int64_t i = 0; i < element_count(parameter.shape); ++i) {
        const auto at = static_cast<std::size_t>(parameter.offset + i);
        const double g = gradient_[at] * scale;
        momentum_[at] = train.beta1() * momentum_[at] + (1 - train.beta1()) * g;
        variance_[at] = train.beta2() * variance_[at] + (1 - train.beta2()) * g * g;
        const double unbiased_momentum = momentum_[at] / (1 - std::pow(train.beta1(), steps_));
        const double unbiased_variance = variance_[at] / (1 - std::pow(train.beta2(), steps_));
        weights_[at] -=
            rate * (unbiased_momentum / (std::sqrt(unbiased_variance) + train.epsilon()) + decay * weights_[at]);
      }
    }
  }

  proto::RunConfig run_;
  ReferenceModel reference_;
  std::vector<double> weights_;
  std::vector<double> momentum_;
  std::vector<double> variance_;
  std::vector<double> gradient_;
  std::uint32_t steps_ = 0;
};

}  // namespace kvloom::test
