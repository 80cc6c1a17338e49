// One rank carries out a step's plan: pages, then rows, then the logits that are wanted. Of stages, the lowest is told
// by the top one what came of it.
#pragma once

#include "core/forward_run.h"
#include "core/inference_model.h"
#include "core/kv_pages.h"
#include "infer/engine/step_plan.h"

namespace kvloom {

struct RunnerOptions {
  KvPagesOptions pages;
  ForwardOptions forward;
  std::int64_t slots = 0;  // sequences with pages at one time
};

// What the engine asks of whoever carries out its plans. Steps that were started are answered in their order.
class StepRunner {
 public:
  virtual ~StepRunner() = default;
  virtual void start(const StepPlan& plan) = 0;
  // Of the first step that was not answered; then its logits are taken.
  virtual StepOutcome outcome() = 0;
  // Logits f32 [n, vocab] of the rows that this step's plan wanted, in the order of its runs and of positions, some at
  // a time. Once after every outcome.
  virtual void logits(const LogitsSink& sink) = 0;
  virtual const KvPages& pages() const = 0;
};

class Runner final : public StepRunner {
 public:
  // The model outlives it.
  Runner(const InferenceModel& model, const RunnerOptions& options);

  // On the leading rank, which holds the first layers, and is the first of those that share them. Where it holds the
  // last ones, too, it has one step under way at a time.
  void start(const StepPlan& plan) override;
  StepOutcome outcome() override;
  void logits(const LogitsSink& sink) override;
  // On any other rank: all of a step.
  void follow(const StepPlan& plan);
  // After the last plan was answered: takes what other stages have sent, and sees off what this one did.
  void finish();

  const KvPages& pages() const override { return pages_; }
  // Rows times layers computed so far.
  std::int64_t layer_rows() const { return forward_.layer_rows(); }

 private:
  StepOutcome run(const StepPlan& plan);
  StageKey answer_key(StageMessage message, std::int64_t step) const;
  void send_outcome(const StepOutcome& outcome);

  const InferenceModel& model_;
  StageLinks* stages_;
  KvPages pages_;
  ForwardRun forward_;
  PageTables tables_;
  std::int64_t started_ = 0;
  std::int64_t answered_ = 0;
  StepOutcome own_;          // where this rank holds the last layers
  std::int64_t wanted_ = 0;  // rows of logits that the top stage sends
};

}  // namespace kvloom
