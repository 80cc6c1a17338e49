// An engine on many ranks. Rank 0 decides everything; the others carry out what it sends: the same plan, checked by its
// digest, on the rank's own part of the model and of the pages (DESIGN 12).
#pragma once

#include <functional>
#include <string>

#include "infer/engine/engine.h"
#include "infer/engine/engine_options.h"
#include "infer/engine/runner.h"
#include "parallel/sent_messages.h"

namespace kvloom {

// Of the messages that bring plans: a length i64, then so many bytes.
inline constexpr int kPlanTag = 1;

// Rank 0's runner: sends each plan to the others, then carries it out.
class LeadingRunner final : public StepRunner {
 public:
  // Both outlive it.
  LeadingRunner(StepRunner& own, Communicator& ranks) : own_(own), ranks_(ranks) {}

  void start(const StepPlan& plan) override;
  StepOutcome outcome() override;
  void logits(const LogitsSink& sink) override;
  const KvPages& pages() const override { return own_.pages(); }
  // The other ranks' `follow` returns, when they have carried out what was sent. Without it they wait for more. Throws
  // Error when a step failed on this rank: they may wait for one another.
  void finish();

 private:
  void send(std::string bytes);

  StepRunner& own_;
  Communicator& ranks_;
  SentMessages<TextMessage> sent_;
  std::int64_t under_way_ = 0;  // steps that have begun, and whose logits were not taken
  bool is_broken_ = false;      // a call has begun, and not ended well
};

// Any other rank: carries out rank 0's plans until its LeadingRunner finishes. Throws Error when a plan arrives
// damaged.
void follow(Runner& own, Communicator& ranks);

// The ranks that serve together.
struct EngineRanks {
  Communicator* all = nullptr;  // null: one rank
  ModelRanks model;             // among them
};

// Rank 0 runs `body` over an engine; the others follow until it returns. Collective. `model` is this rank's part. What
// `body` throws comes out at once: the others wait on, and whoever runs the ranks takes them down.
void run_engine(const InferenceModel& model, const EngineOptions& options, const EngineRanks& ranks,
                const std::function<void(Engine&)>& body);

}  // namespace kvloom
