// One rank carries out a step's plan: pages, then rows, then the logits that are wanted.
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

class Runner {
 public:
  // The model outlives it.
  Runner(const InferenceModel& model, const RunnerOptions& options);

  StepOutcome execute(const StepPlan& plan);
  // Logits f32 [n, vocab] of the rows that the last plan wanted, in the order of its runs and of positions, some at a
  // time.
  void logits(const LogitsSink& sink) { forward_.logits(sink); }

  const KvPages& pages() const { return pages_; }
  // Rows times layers computed so far.
  std::int64_t layer_rows() const { return forward_.layer_rows(); }

 private:
  KvPages pages_;
  ForwardRun forward_;
  PageTables tables_;
};

}  // namespace kvloom
