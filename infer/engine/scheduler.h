// Which sequences run, and what of each is computed in the next step. Pure logic: it knows numbers, no tensors, and no
// clock but the one handed in.
//
// Order. Sequences stand in one order: higher priority first, then earlier arrival. Admission follows it strictly, so a
// sequence waits only for those before it. Decoding sequences run in every step, one token each; prompts share what
// the budget leaves, in order.
//
// Budget. It counts rows times the layers that compute them. Prompts get what decoding leaves of it, and a quarter of
// it at the least; a wavefront pass is never cut, since its window is part of what it computes. The first prompt that
// needs something always gets a pass, or one row at the least. So a step costs at most
//   max(budget, layers * decoding sequences + max(a quarter of the budget, one pass)).
//
// Pages. A prompt's pages of sources that are read without a window are taken when it is admitted; windowed ones are
// set aside, as many as the sequence can ever hold. Decoding takes a page when it needs one; when there is none, the
// last sequence in the order loses its pages: swapped to the host while there is room, else to be computed again by the
// same steps. A sequence that has lost them twice comes back only when all pages that it may ever need can be set
// aside, and keeps them: so preemptions of a sequence are at most two. Nobody is admitted in a step that preempts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "core/kv_map.h"
#include "infer/engine/prefill_progress.h"
#include "infer/engine/sequence.h"
#include "infer/engine/sequence_pages.h"
#include "infer/engine/step_plan.h"

namespace kvloom {

struct SchedulerOptions {
  std::vector<PageGroup> groups;
  std::int64_t page_size = 32;
  std::int64_t max_sequences = 256;  // with pages at one time
  std::int64_t budget = 0;           // layer-rows a step; 0: 512 rows of all layers
  std::int64_t max_chunk = 512;      // rows of a prompt in one step
  std::int64_t window = 64;          // W of the wavefront
  std::int64_t grid = 512;           // G: blocks of prompts, and of the prefix cache, in maps with upward reads
  std::int64_t prefill_passes = 0;   // a token settles after so many at the latest; 0: no cap
  bool prefix_cache = true;
  bool reuse_generated = true;  // pages that decoding filled may be found by later prompts
  PageKey identity;             // of model, map and numeric options: where chains of page keys start
  // Steps that are planned before the first of them is finished. Decoding sequences share them evenly, and each
  // sequence is in one of them at most.
  int steps_under_way = 1;
};

struct SequenceStatus {
  SequenceState state;
  std::int32_t slot;           // while it runs; else -1
  std::int64_t computed;       // positions whose K/V are final
  std::int64_t cached_tokens;  // of these, found in the prefix cache when it was first admitted
  int preemptions;
  // Rows that ran in iterated segments, weighted by layers, over the prompt's; 1 where nothing is iterated. Of the
  // prompt's tokens that were computed.
  double passes_per_token;
  bool capped;  // a token settled because of prefill_passes
};

struct SchedulerCounts {
  std::int64_t waiting = 0;
  std::int64_t running = 0;
  std::int64_t swapped = 0;
  std::int64_t preemptions = 0;     // ever
  std::int64_t prefix_queries = 0;  // prompt tokens looked up, ever
  std::int64_t prefix_hits = 0;     // and found
};

// A row of logits that a step's outcome brings.
struct WantedRow {
  SequenceId sequence;
  std::int64_t position;  // of the token whose logits these are
  bool samples;           // the sequence's next token is to be chosen from it: `append` is expected
};

class Scheduler {
 public:
  // Throws InputError when an option is out of its range: what, and what would be right.
  Scheduler(const KvMap& map, SchedulerOptions options);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Throws InputError when the sequence could never run: an empty prompt, max_tokens below its length, more pages than
  // a pool has.
  SequenceId add(NewSequence sequence);
  // `count` more sequences with the prompt of `parent`, which share its pages: to be called between the outcome that
  // brought the last prompt position's logits and the parent's `append`, each then gets its own first token by
  // `append`. Full pages are shared, the last one is copied in the next step. Where slots or pages are lacking, one
  // waits.
  std::vector<SequenceId> fork(SequenceId parent, int count);
  // The next token of a running sequence that a WantedRow asked for.
  void append(SequenceId sequence, std::int32_t token);
  // Gives up its pages, when its step has been finished if one is under way. For sequences that ended as for those
  // cancelled. Throws Error for ids that are unknown.
  void remove(SequenceId sequence);

  bool can_plan() const { return std::ssize(under_way_) < options_.steps_under_way; }
  // The next step, to be followed by finish(). An empty plan, which needs none, when there is nothing to do until a
  // token is appended, a sequence added or a step finished. Whatever waits makes progress in a bounded number of steps.
  StepPlan plan();
  // What the step did. `plan` is the one under way that was made first. Returns the rows whose logits it brought, run
  // by run, as the runner orders them: those of removed sequences too.
  std::vector<WantedRow> finish(const StepPlan& plan, const StepOutcome& outcome);

  SequenceStatus status(SequenceId sequence) const;
  SchedulerCounts counts() const;
  PageCounts pages(int group) const;
  // The most that one step may cost with so many sequences decoding, in layer-rows: see above.
  std::int64_t largest_step(std::int64_t decoding) const;

 private:
  struct Before {
    bool operator()(const Sequence* one, const Sequence* other) const;
  };

  Sequence& find(SequenceId id) const;
  Sequence& insert(std::unique_ptr<Sequence> sequence);
  Sequence& at_slot(std::int32_t slot) const { return *slots_.at(static_cast<std::size_t>(slot)); }
  bool has_slot() const { return std::ranges::find(slots_, nullptr) != slots_.end(); }
  std::int64_t grid() const { return rules_.upward ? options_.grid : options_.page_size; }
  void extend_keys(Sequence& sequence, std::int64_t positions) const;
  // Runs from now on; its pages are there.
  void start(Sequence& sequence);
  // Neither runs nor waits.
  void leave(Sequence& sequence);

  // Parts of plan(). `make_room` preempts others, or the sequence itself: then it returns false.
  std::int64_t plan_decoding(StepPlan& plan);
  std::int64_t share_of_decoding() const;
  RowRun decoding_run(const Sequence& sequence, std::int64_t most) const;
  bool make_room(Sequence& sequence, StepPlan& plan);
  void preempt(Sequence& sequence, StepPlan& plan);
  void admit_waiting(StepPlan& plan);
  bool admit(Sequence& sequence, StepPlan& plan);
  void plan_prompts(std::int64_t budget, StepPlan& plan);

  // Parts of finish().
  void settle(Sequence& sequence, const RowRun& run, std::int32_t settled, std::vector<WantedRow>& wanted);
  void publish(Sequence& sequence);

  SchedulerOptions options_;
  PrefillRules rules_;
  PagePools pools_;
  std::map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::set<Sequence*, Before> running_;
  std::set<Sequence*, Before> waiting_;  // swapped ones too
  std::vector<Sequence*> slots_;         // null: free
  SequenceId next_id_ = 1;
  std::int64_t step_ = 0;
  std::deque<std::int64_t> under_way_;  // steps that were planned, and are not finished
  SchedulerCounts counts_;
};

}  // namespace kvloom
