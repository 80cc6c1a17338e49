// How a step is planned: decoding first, then who waits, then prompts.
#include <algorithm>

#include "infer/engine/scheduler.h"
#include "kernels/error.h"

namespace kvloom {

StepPlan Scheduler::plan() {
  if (!can_plan()) fail("scheduler: step {} is under way; finish it first", under_way_.front());
  StepPlan plan;
  const std::int64_t preempted = counts_.preemptions;
  const std::int64_t spent = plan_decoding(plan);
  if (counts_.preemptions == preempted) admit_waiting(plan);
  plan_prompts(std::max(options_.budget - spent, options_.budget / 4), plan);
  for (Sequence* sequence : running_) sequence->pages.announce(sequence->slot, plan);
  for (const RowRun& run : plan.rows.runs) {
    if (run.layers.first > 0) continue;
    const auto first = at_slot(run.slot).tokens.begin() + run.first_position;
    plan.rows.tokens.insert(plan.rows.tokens.end(), first, first + run.rows);
  }
  if (plan.is_empty()) return plan;
  for (const RowRun& run : plan.rows.runs) at_slot(run.slot).under_way = true;
  plan.finished = under_way_.empty() ? step_ : under_way_.front() - 1;
  plan.step = ++step_;
  under_way_.push_back(plan.step);
  return plan;
}

// Of as many steps as may be under way, one's part of the sequences that decode.
std::int64_t Scheduler::share_of_decoding() const {
  const std::int64_t decoding =
      std::ranges::count_if(running_, [](const Sequence* sequence) { return !sequence->is_in_prompt(); });
  return (decoding + options_.steps_under_way - 1) / options_.steps_under_way;
}

// One row of each decoding sequence. Returns what they cost.
std::int64_t Scheduler::plan_decoding(StepPlan& plan) {
  std::int64_t spent = 0;
  const std::int64_t most = share_of_decoding();
  const std::vector<Sequence*> in_order(running_.begin(), running_.end());
  for (Sequence* sequence : in_order) {
    if (std::ssize(plan.rows.runs) == most) break;
    if (sequence->state != SequenceState::kRunning || !sequence->has_work()) continue;
    if (sequence->is_in_prompt() || !make_room(*sequence, plan)) continue;
    plan.rows.runs.push_back(decoding_run(*sequence, 1));
    spent += rules_.cost(plan.rows.runs.back());
  }
  return spent;
}

RowRun Scheduler::decoding_run(const Sequence& sequence, std::int64_t most) const {
  return {.slot = sequence.slot,
          .kind = RowKind::kDecode,
          .layers = {0, rules_.layers},
          .first_position = sequence.computed,
          .rows = static_cast<std::int32_t>(std::min(most, sequence.target() - sequence.computed)),
          .block_first = sequence.computed,
          .wanted_from = sequence.wanted_from()};
}

bool Scheduler::make_room(Sequence& sequence, StepPlan& plan) {
  while (!sequence.pages.cover(sequence.computed + 1)) {
    // It stands in the order itself, and whoever took all its pages finds them: so there is one.
    const auto last = std::find_if(running_.rbegin(), running_.rend(),
                                   [](const Sequence* s) { return s->preemptions < 2 && !s->under_way; });
    Sequence& victim = **last;
    preempt(victim, plan);
    if (&victim == &sequence) return false;
  }
  return true;
}

void Scheduler::admit_waiting(StepPlan& plan) {
  for (auto next = waiting_.begin(); next != waiting_.end();) {
    Sequence& sequence = **next++;
    if (sequence.has_work() && !admit(sequence, plan)) return;
  }
}

bool Scheduler::admit(Sequence& sequence, StepPlan& plan) {
  if (!has_slot()) return false;
  const std::int64_t most_positions = sequence.most_positions();
  const std::int64_t end = sequence.preemptions < 2 ? std::min(sequence.known(), most_positions) : most_positions;
  if (sequence.state == SequenceState::kSwapped) {
    if (!sequence.pages.swap_in(end, plan)) return false;
    start(sequence);
    return true;
  }
  std::int64_t hit = 0;
  if (options_.prefix_cache) {
    // Without reuse, generated positions are decoded here, even where another prompt has computed the same tokens.
    const std::int64_t reusable = options_.reuse_generated ? sequence.known() : sequence.prompt;
    const std::int64_t most = std::min(reusable, sequence.wanted_from());
    extend_keys(sequence, most);
    hit = pools_.longest_hit(sequence.keys, most, grid());
  }
  if (!sequence.pages.admit(sequence.keys, hit, end)) return false;
  if (!sequence.cached_tokens.has_value()) {
    sequence.cached_tokens = std::min(hit, sequence.prompt);
    if (options_.prefix_cache) counts_.prefix_queries += sequence.prompt;
    counts_.prefix_hits += *sequence.cached_tokens;
  }
  sequence.computed = hit;
  start(sequence);
  return true;
}

void Scheduler::start(Sequence& sequence) {
  waiting_.erase(&sequence);
  running_.insert(&sequence);
  const auto slot = std::ranges::find(slots_, nullptr);
  *slot = &sequence;
  sequence.slot = static_cast<std::int32_t>(slot - slots_.begin());
  sequence.state = SequenceState::kRunning;
  if (sequence.is_in_prompt()) sequence.prefill.begin(sequence.computed);
}

void Scheduler::leave(Sequence& sequence) {
  running_.erase(&sequence);
  waiting_.erase(&sequence);
  if (sequence.slot >= 0) slots_[static_cast<std::size_t>(sequence.slot)] = nullptr;
  sequence.slot = -1;
}

void Scheduler::preempt(Sequence& sequence, StepPlan& plan) {
  leave(sequence);
  waiting_.insert(&sequence);
  sequence.state = SequenceState::kSwapped;
  sequence.published = 0;
  ++sequence.preemptions;
  ++counts_.preemptions;
  if (sequence.pages.swap_out(sequence.computed, plan)) return;
  sequence.pages.release();
  sequence.computed = 0;
  sequence.state = SequenceState::kWaiting;
}

// The budget's rest, in order; where a step has nothing else of a prompt, it has a pass or a row.
void Scheduler::plan_prompts(std::int64_t budget, StepPlan& plan) {
  const std::size_t decoding = plan.rows.runs.size();
  std::int64_t given = 0;
  for (std::size_t index = 0; index < decoding && !rules_.upward; ++index) {
    // Known tokens after the prompt, of a sequence that is computed again: more than one a step.
    RowRun& run = plan.rows.runs[index];
    Sequence& sequence = at_slot(run.slot);
    const std::int64_t first = rules_.cost(run);
    RowRun more = decoding_run(sequence, rules_.max_chunk);
    more.rows = rules_.rows_within(more, budget - given + first);
    if (more.rows <= run.rows) continue;
    given += rules_.cost(more) - first;
    sequence.pages.cover(more.end_position());
    run = more;
  }
  for (Sequence* sequence : running_) {
    if (!sequence->is_in_prompt() || sequence->under_way) continue;
    RowRun run = sequence->prefill.next(sequence->wanted_from());
    run.slot = sequence->slot;
    const std::int32_t fitting = rules_.rows_within(run, budget - given);
    if (run.kind == RowKind::kChunk) run.rows = std::max(fitting, given == 0 ? 1 : 0);
    if (run.rows == 0 || (run.kind == RowKind::kWavefront && fitting < run.rows && given > 0)) continue;
    given += rules_.cost(run);
    sequence->pages.cover(run.end_position());
    plan.rows.runs.push_back(run);
  }
}

}  // namespace kvloom
