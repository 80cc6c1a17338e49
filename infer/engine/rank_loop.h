// An engine on many ranks. Rank 0 decides everything; the others carry out what it sends: the same plan, checked by its
// digest, on the rank's own part of the model and of the pages (DESIGN 12).
#pragma once

#include <functional>

#include "infer/engine/engine.h"
#include "infer/engine/engine_options.h"
#include "infer/engine/runner.h"
#include "parallel/communicator.h"

namespace kvloom {

// Rank 0's runner: sends each plan to the others, then carries it out.
class LeadingRunner final : public StepRunner {
 public:
  // Both outlive it.
  LeadingRunner(StepRunner& own, Communicator& ranks) : own_(own), ranks_(ranks) {}
  // The other ranks' `follow` returns, unless a step failed under way: then they may wait for one another, and whoever
  // runs them takes them down.
  ~LeadingRunner() override;

  StepOutcome execute(const StepPlan& plan) override;
  void logits(const LogitsSink& sink) override;
  const KvPages& pages() const override { return own_.pages(); }

 private:
  StepRunner& own_;
  Communicator& ranks_;
  bool under_way_ = false;  // a step has begun, and its logits were not taken
};

// Any other rank: carries out rank 0's plans until its LeadingRunner goes away. Throws Error when a plan arrives
// damaged.
void follow(StepRunner& own, Communicator& ranks);

// The ranks that serve together.
struct EngineRanks {
  Communicator* all = nullptr;    // null: one rank
  TensorGroup* tensor = nullptr;  // those that share the model's matrices: all of them
};

// Rank 0 runs `body` over an engine; the others follow until it returns. Collective. `model` is this rank's part.
void run_engine(const InferenceModel& model, const EngineOptions& options, const EngineRanks& ranks,
                const std::function<void(Engine&)>& body);

}  // namespace kvloom
