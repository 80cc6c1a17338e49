// One micro-batch of training: forward, loss and gradients of every weight; and the losses alone, for evaluation.
#pragma once

#include <cstdint>

#include "core/head.h"
#include "core/iteration_plan.h"
#include "core/model.h"
#include "core/plan_run.h"

namespace kvloom {

// A batch of sequences of equal length: i32 [sequences * positions] each; target kIgnoredTarget counts for nothing.
struct TokenBatch {
  Tensor tokens;
  Tensor targets;
  std::int64_t sequences;
  std::int64_t positions;
};

// Copies host tokens to the model's device. Sizes must agree (Error).
TokenBatch make_token_batch(const Model& model, std::span<const std::int32_t> tokens,
                            std::span<const std::int32_t> targets, std::int64_t sequences);

class TrainingPass {
 public:
  // For sequences of `positions` tokens. The model outlives it.
  TrainingPass(const Model& model, const Passes& passes, std::int64_t positions, Recompute recompute);

  // Adds the gradients of grad_scale times the sum of the batch's losses to `gradients` (+=). Returns that sum in nats,
  // without the scale.
  double run(const TokenBatch& batch, float grad_scale, ModelGradients& gradients);

  const IterationPlan& plan() const { return plan_; }
  // What the last `run` ran.
  const LayerRunTally& tally() const { return tally_; }

 private:
  const Model& model_;
  IterationPlan plan_;
  RopeTable rope_;
  std::int64_t positions_;
  Recompute recompute_;
  LayerRunTally tally_;
};

// Losses in nats, f32 [sequences * positions], of the parallel form with `passes` (DESIGN 5); nothing is kept. A sink
// gets the logits they come from, as rows of the same order.
Tensor parallel_losses(const Model& model, const Passes& passes, const TokenBatch& batch,
                       const LogitsSink& sink = nullptr);

// The same by sequential semantics, token by token.
Tensor sequential_losses(const Model& model, const TokenBatch& batch, const LogitsSink& sink = nullptr);

}  // namespace kvloom
