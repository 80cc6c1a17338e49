// AdamW over a model's flat weights (kernels/adamw.h).
#pragma once

#include <cstdint>

#include "core/model.h"
#include "core/tensor.h"
#include "parallel/data_replicas.h"
#include "proto/run.pb.h"

namespace kvloom {

class AdamWOptimizer {
 public:
  // Updates the weights [range.begin, range.end) of the model. Moments start at zero. The model outlives the optimizer;
  // `config` is a filled one (core/config.h).
  AdamWOptimizer(Model& model, ElementRange range, const proto::TrainConfig& config);

  // One update from `gradient` (f32, flat as all the weights) times `gradient_scale`. Weight decay touches matrices
  // only.
  void step(const Tensor& gradient, double learning_rate, double gradient_scale);

  // Updates done; what a checkpoint restores beside the moments.
  std::int64_t steps() const { return steps_; }
  void set_steps(std::int64_t steps) { steps_ = steps; }
  const ElementRange& range() const { return range_; }
  // f32 [range().size()] each.
  Tensor& momentum() { return momentum_; }
  Tensor& variance() { return variance_; }

 private:
  Model& model_;
  ElementRange range_;
  proto::TrainConfig config_;
  Tensor momentum_;
  Tensor variance_;
  std::int64_t steps_ = 0;
};

// The 2-norm of a flat f32 gradient.
double gradient_norm(const Tensor& gradient);

// What a gradient of that norm is multiplied with, so that it is at most `clip` (0: never).
double clip_scale(double norm, double clip);

}  // namespace kvloom
