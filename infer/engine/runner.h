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

// What the engine asks of whoever carries out its plans.
class StepRunner {
 public:
  virtual ~StepRunner() = default;
  virtual StepOutcome execute(const StepPlan& plan) = 0;
  // Logits f32 [n, vocab] of the rows that the last plan wanted, in the order of its runs and of positions, some at a
  // time. Once after every plan.
  virtual void logits(const LogitsSink& sink) = 0;
  virtual const KvPages& pages() const = 0;
};

class Runner final : public StepRunner {
 public:
  // The model outlives it.
  Runner(const InferenceModel& model, const RunnerOptions& options);

  StepOutcome execute(const StepPlan& plan) override;
  void logits(const LogitsSink& sink) override;
  // After the last plan: takes what other stages have sent, and sees off what this one did.
  void finish();
  const KvPages& pages() const override { return pages_; }
  // Rows times layers computed so far.
  std::int64_t layer_rows() const { return forward_.layer_rows(); }

 private:
  StageKey answer_key(StageMessage message) const;
  void send_outcome(const StepOutcome& outcome);
  void receive_outcome(StepOutcome& outcome);

  const InferenceModel& model_;
  StageLinks* stages_;
  KvPages pages_;
  ForwardRun forward_;
  PageTables tables_;
  std::int64_t steps_ = 0;
  std::int64_t wanted_ = 0;  // rows of logits that the top stage sends
};

}  // namespace kvloom
