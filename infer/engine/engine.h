// The inference engine: requests in, events out, a step at a time. It serves any map: many sequences share each step,
// their K and V lie in pages by source, and prompts of maps with upward reads settle by wavefronts. generate, eval,
// bench serve and serve are its callers, and it never asks which.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/inference_model.h"
#include "infer/batch_sampler.h"
#include "infer/engine/engine_options.h"
#include "infer/engine/request.h"
#include "infer/engine/runner.h"
#include "infer/engine/scheduler.h"

namespace kvloom {

struct EngineCounts {
  SchedulerCounts sequences;
  std::vector<PageCounts> pages;  // by group of sources, the widest reach first
  std::int64_t steps = 0;
  std::int64_t generated_tokens = 0;  // ever
};

class Engine {
 public:
  // The model outlives it. Throws InputError for options out of their range.
  Engine(const InferenceModel& model, const EngineOptions& options);
  // Over a runner that carries its plans out, of running_of(options, ..); `options` are completed ones. It outlives the
  // engine.
  Engine(const InferenceModel& model, const EngineOptions& options, StepRunner& runner);

  // Throws InputError for what could never run: what is wrong with it, and what would be right. `now` is on the same
  // clock as step's.
  RequestId submit(Request request, double now = 0);
  // Ends a request, or one of its texts, without an event. Nothing happens where it has ended.
  void cancel(RequestId request);
  void cancel(RequestId request, int choice);
  // Computes one step, if there is anything to do, and says what came of it. `now`: seconds on any clock that does not
  // go back; requests whose deadline is over end. With several steps under way it starts as many as can be, and waits
  // for the first of them.
  std::vector<Event> step(double now = 0);

  bool is_idle() const { return texts_.empty() && under_way_.empty(); }
  const InferenceModel& model() const { return model_; }
  const EngineOptions& options() const { return options_; }  // with what was 0 filled in
  const KvPages& pages() const { return runner_->pages(); }
  EngineCounts counts() const;

 private:
  // One text under way.
  struct Text {
    RequestId request;
    int choice;
    std::vector<std::int32_t> tokens;  // prompt and generated
  };
  struct Active {
    Request request;
    std::map<int, SequenceId> sequences;  // by choice, of those that have not ended
  };

  void take_logits(std::span<const WantedRow> wanted, const Tensor& logits, std::vector<Event>& events);
  void take_score(const WantedRow& row, const ChosenToken& chosen, std::vector<Event>& events);
  void take_samples(SequenceId sequence, std::span<const ChosenToken> chosen, std::vector<Event>& events);
  void take_token(SequenceId sequence, const ChosenToken& chosen, std::vector<Event>& events);
  void fail_text(SequenceId sequence, const std::exception_ptr& fault, std::vector<Event>& events);
  void finish(SequenceId sequence, FinishReason reason, std::vector<Event>& events);
  void end_overdue(double now, std::vector<Event>& events);
  void forget(SequenceId sequence);
  Event& event_of(SequenceId sequence, std::vector<Event>& events) const;
  Usage usage_of(SequenceId sequence) const;

  const InferenceModel& model_;
  EngineOptions options_;
  std::unique_ptr<Runner> own_runner_;  // null where one was given
  StepRunner* runner_;
  Scheduler scheduler_;
  std::deque<StepPlan> under_way_;
  RequestId next_request_ = 1;
  std::unordered_map<RequestId, Active> active_;
  std::map<SequenceId, Text> texts_;
  EngineCounts counts_;
};

}  // namespace kvloom
