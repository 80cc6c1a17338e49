#include "core/training_pass.h"

#include <algorithm>

#include "core/decoder.h"
#include "core/head.h"

namespace kvloom {

TokenBatch make_token_batch(const Model& model, std::span<const std::int32_t> tokens,
                            std::span<const std::int32_t> targets, std::int64_t sequences) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (sequences < 1 || count == 0 || count % sequences != 0 || targets.size() != tokens.size()) {
    fail("token batch: {} tokens and {} targets in {} sequences", tokens.size(), targets.size(), sequences);
  }
  TokenBatch batch{Tensor::empty(model.allocator(), {count}, DType::kI32),
                   Tensor::empty(model.allocator(), {count}, DType::kI32), sequences, count / sequences};
  std::ranges::copy(tokens, batch.tokens.as<std::int32_t>().begin());
  std::ranges::copy(targets, batch.targets.as<std::int32_t>().begin());
  return batch;
}

TrainingPass::TrainingPass(const Model& model, const Passes& passes, std::int64_t positions, Recompute recompute)
    : model_(model),
      plan_(make_iteration_plan(model.config().kv_map, passes, PlanMode::kTrain)),
      rope_(make_rope_table(model.config(), positions, model.allocator())),
      positions_(positions),
      recompute_(recompute) {}

double TrainingPass::run(const TokenBatch& batch, float grad_scale, ModelGradients& gradients) {
  if (batch.positions != positions_) fail("training: sequences of {} tokens, made for {}", batch.positions, positions_);
  PlanRun run(model_, plan_, rope_,
              {.sequences = batch.sequences, .positions = batch.positions, .recompute = recompute_});
  const Tensor hidden = run.forward(batch.tokens);
  const HeadResult head = head_loss_and_gradient(model_, hidden, batch.targets, grad_scale, gradients);
  run.backward(batch.tokens, head.grad_hidden, gradients);
  tally_ = run.tally();
  return head.loss_sum;
}

Tensor parallel_losses(const Model& model, const Passes& passes, const TokenBatch& batch) {
  const IterationPlan plan = make_iteration_plan(model.config().kv_map, passes, PlanMode::kPrefill, batch.positions);
  const RopeTable rope = make_rope_table(model.config(), batch.positions, model.allocator());
  PlanRun run(model, plan, rope, {.sequences = batch.sequences, .positions = batch.positions});
  return head_losses(model, run.forward(batch.tokens), batch.targets);
}

Tensor sequential_losses(const Model& model, const TokenBatch& batch) {
  Decoder decoder(model, batch.sequences, batch.positions);
  Tensor losses = Tensor::empty(model.allocator(), {batch.tokens.count()}, DType::kF32);
  Tensor tokens = Tensor::empty(model.allocator(), {batch.sequences}, DType::kI32);
  Tensor targets = Tensor::empty(model.allocator(), {batch.sequences}, DType::kI32);
  for (std::int64_t position = 0; position < batch.positions; ++position) {
    for (std::int64_t sequence = 0; sequence < batch.sequences; ++sequence) {
      const auto at = static_cast<std::size_t>(sequence * batch.positions + position);
      tokens.as<std::int32_t>()[static_cast<std::size_t>(sequence)] = batch.tokens.as<std::int32_t>()[at];
      targets.as<std::int32_t>()[static_cast<std::size_t>(sequence)] = batch.targets.as<std::int32_t>()[at];
    }
    const Tensor step = cross_entropy_losses(decoder.step(tokens), targets, model.allocator());
    for (std::int64_t sequence = 0; sequence < batch.sequences; ++sequence) {
      losses.as<float>()[static_cast<std::size_t>(sequence * batch.positions + position)] =
          step.as<float>()[static_cast<std::size_t>(sequence)];
    }
  }
  return losses;
}

}  // namespace kvloom
