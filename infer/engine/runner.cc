#include "infer/engine/runner.h"

#include <array>
#include <utility>

#include "kernels/error.h"

namespace kvloom {

Runner::Runner(const InferenceModel& model, const RunnerOptions& options)
    : model_(model),
      stages_(options.forward.stages),
      pages_(model.config(), options.pages, model.allocator()),
      forward_(model, pages_, options.forward),
      tables_(pages_.groups().size(), options.slots,
              (options.forward.context + options.pages.page_size - 1) / options.pages.page_size) {}

StepOutcome Runner::run(const StepPlan& plan) {
  ++started_;
  forward_.take_upward(plan.finished);
  for (const PageSwap& swap : plan.swap_out) pages_.swap_out(swap.group, swap.page, swap.place);
  for (const PageSwap& swap : plan.swap_in) pages_.swap_in(swap.group, swap.page, swap.place);
  for (const PageCopy& copy : plan.copies) pages_.copy(copy.group, copy.from, copy.to);
  for (const PageAssignment& page : plan.pages) tables_.set(page.slot, page.group, page.index, page.page);
  return forward_.run(plan.rows, tables_);
}

void Runner::start(const StepPlan& plan) {
  if (stages_ == nullptr && started_ > answered_) fail("runner: step {} is not answered", answered_ + 1);
  own_ = run(plan);
}

void Runner::follow(const StepPlan& plan) {
  const StepOutcome outcome = run(plan);
  if (!model_.shard().head) return;
  // One tensor rank speaks for all.
  const bool speaks = stages_ != nullptr && model_.shard().tensor_rank == 0;
  if (speaks) send_outcome(outcome);
  forward_.logits([&](std::int64_t, const Tensor& logits) {
    if (speaks) stages_->send(answer_key(StageMessage::kLogits, started_), {logits});
  });
}

StageKey Runner::answer_key(StageMessage message, std::int64_t step) const {
  return {.message = message,
          .step = step,
          .layer = static_cast<int>(model_.config().layers),
          .from = stages_->stages() - 1,
          .to = 0};
}

void Runner::send_outcome(const StepOutcome& outcome) {
  const auto runs = std::ssize(outcome.settled);
  const std::array<std::int32_t, 1> wanted = {static_cast<std::int32_t>(forward_.wanted())};
  Allocator& allocator = model_.allocator();
  stages_->send(
      answer_key(StageMessage::kOutcome, started_),
      {Tensor::of<std::int32_t>(allocator, {runs, 1}, outcome.settled),
       Tensor::of<float>(allocator, {runs, 1}, outcome.residual), Tensor::of<std::int32_t>(allocator, {1, 1}, wanted)});
}

StepOutcome Runner::outcome() {
  if (answered_ == started_) fail("runner: step {} was not started", answered_ + 1);
  ++answered_;
  if (stages_ == nullptr) return std::move(own_);
  const std::array<StagePart, 3> parts = {StagePart{1, DType::kI32}, StagePart{1, DType::kF32},
                                          StagePart{1, DType::kI32}};
  const std::vector<Tensor> came = stages_->receive(answer_key(StageMessage::kOutcome, answered_), parts);
  wanted_ = came[2].as<std::int32_t>().front();
  return {.settled = came[0].values<std::int32_t>(), .residual = came[1].values<float>()};
}

void Runner::logits(const LogitsSink& sink) {
  if (stages_ == nullptr) return forward_.logits(sink);
  const std::array<StagePart, 1> part = {StagePart{model_.config().vocab, DType::kF32}};
  for (std::int64_t first = 0; first < wanted_;) {
    const Tensor logits = stages_->receive(answer_key(StageMessage::kLogits, answered_), part).front();
    sink(first, logits);
    first += logits.size(0);
  }
}

void Runner::finish() {
  if (stages_ == nullptr) return;
  forward_.take_upward(started_);
  stages_->finish();
}

}  // namespace kvloom
