#include "core/training_pass.h"

#include <vector>

#include "core/decoder.h"

namespace kvloom {

TokenBatch make_token_batch(const Model& model, std::span<const std::int32_t> tokens,
                            std::span<const std::int32_t> targets, std::int64_t sequences) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (sequences < 1 || count == 0 || count % sequences != 0 || targets.size() != tokens.size()) {
    fail("token batch: {} tokens and {} targets in {} sequences", tokens.size(), targets.size(), sequences);
  }
  return {Tensor::of(model.allocator(), {count}, tokens), Tensor::of(model.allocator(), {count}, targets), sequences,
          count / sequences};
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
  return sum_of_losses(head.losses);
}

Tensor parallel_losses(const Model& model, const Passes& passes, const TokenBatch& batch, const LogitsSink& sink) {
  const IterationPlan plan = make_iteration_plan(model.config().kv_map, passes, PlanMode::kPrefill, batch.positions);
  const RopeTable rope = make_rope_table(model.config(), batch.positions, model.allocator());
  PlanRun run(model, plan, rope, {.sequences = batch.sequences, .positions = batch.positions});
  return head_losses(model, run.forward(batch.tokens), batch.targets, nullptr, sink);
}

Tensor sequential_losses(const Model& model, const TokenBatch& batch, const LogitsSink& sink) {
  Decoder decoder(model, batch.sequences, batch.positions);
  const std::vector<std::int32_t> tokens = batch.tokens.values<std::int32_t>();
  const std::vector<std::int32_t> targets = batch.targets.values<std::int32_t>();
  std::vector<float> losses(tokens.size());
  std::vector<std::int32_t> now(static_cast<std::size_t>(batch.sequences));
  std::vector<std::int32_t> next(now.size());
  for (std::int64_t position = 0; position < batch.positions; ++position) {
    const auto at = [&](std::size_t sequence) {
      return sequence * static_cast<std::size_t>(batch.positions) + static_cast<std::size_t>(position);
    };
    for (std::size_t sequence = 0; sequence < now.size(); ++sequence) {
      now[sequence] = tokens[at(sequence)];
      next[sequence] = targets[at(sequence)];
    }
    const TokenBatch step = make_token_batch(model, now, next, batch.sequences);
    const Tensor logits = decoder.step(step.tokens);
    const std::vector<float> of_step = cross_entropy_losses(logits, step.targets, model.allocator()).values<float>();
    for (std::size_t sequence = 0; sequence < now.size(); ++sequence) {
      losses[at(sequence)] = of_step[sequence];
      const auto row = static_cast<std::int64_t>(sequence);
      if (sink) sink(static_cast<std::int64_t>(at(sequence)), logits.rows(row, row + 1));
    }
  }
  return Tensor::of<float>(model.allocator(), {batch.tokens.count()}, losses);
}

}  // namespace kvloom
