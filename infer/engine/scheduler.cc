#include "infer/engine/scheduler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

void check(const char* name, std::int64_t value, std::int64_t least, std::int64_t most = kMost) {
  if (value < least || value > most) reject_input("{} is {}; right are {} to {}", name, value, least, most);
}

void check(const SchedulerOptions& options, bool upward) {
  check("scheduler: page_size", options.page_size, 1);
  check("scheduler: max_sequences", options.max_sequences, 1);
  check("scheduler: budget", options.budget, 0, kMost * kMost);
  check("scheduler: max_chunk", options.max_chunk, 1);
  check("scheduler: window", options.window, 1);
  check("scheduler: grid", options.grid, 1);
  check("scheduler: prefill_passes", options.prefill_passes, 0);
  check("scheduler: steps_under_way", options.steps_under_way, 1);
  check("scheduler: the number of page groups", std::ssize(options.groups), 1);
  for (const PageGroup& group : options.groups) {
    check("scheduler: a group's reach", group.reach, 0);
    check("scheduler: a group's number of pages", group.pages, 1);
    check("scheduler: a group's number of swap places", group.swap_places, 0);
  }
  if (upward && options.grid % options.page_size != 0) {
    reject_input("scheduler: grid is {}; right is a multiple of the page size {}", options.grid, options.page_size);
  }
}

void check(const NewSequence& sequence) {
  const std::int64_t prompt = std::ssize(sequence.prompt);
  check("sequence: the prompt's length", prompt, 1);
  check("sequence: max_tokens", sequence.max_tokens, prompt + std::ssize(sequence.generated));
  check("sequence: score_from", sequence.score_from.value_or(0), 0, prompt - 1);
  if (std::isnan(sequence.arrival)) reject_input("sequence: arrival is no time");
}

}  // namespace

bool Scheduler::Before::operator()(const Sequence* one, const Sequence* other) const {
  return std::tuple(other->facts.priority, one->facts.arrival, one->id) <
         std::tuple(one->facts.priority, other->facts.arrival, other->id);
}

Scheduler::Scheduler(const KvMap& map, SchedulerOptions options) : options_(std::move(options)), rules_(map) {
  check(options_, rules_.upward);
  if (options_.budget == 0) options_.budget = 512 * std::int64_t{map.layers()};
  rules_.grid = options_.grid;
  rules_.window = options_.window;
  rules_.max_chunk = options_.max_chunk;
  rules_.passes = options_.prefill_passes;
  for (const PageGroup& group : options_.groups) pools_.pools.emplace_back(group);
  pools_.page_size = options_.page_size;
  pools_.ahead = rules_.upward ? options_.grid : options_.max_chunk;
  slots_.assign(static_cast<std::size_t>(options_.max_sequences), nullptr);
}

SequenceId Scheduler::add(NewSequence facts) {
  check(facts);
  auto sequence = std::make_unique<Sequence>(next_id_, std::move(facts), rules_, pools_);
  for (const PagePool& pool : pools_.pools) {
    const std::int64_t pages = sequence->pages.most(pool, pools_.ahead);
    if (pages <= pool.group.pages) continue;
    reject_input("sequence: {} positions take {} pages of {}; the pool has {}", sequence->most_positions(), pages,
                 options_.page_size, pool.group.pages);
  }
  return insert(std::move(sequence)).id;
}

std::vector<SequenceId> Scheduler::fork(SequenceId id, int count) {
  const Sequence& parent = find(id);
  if (parent.under_way || !parent.awaits_token || parent.slot < 0 || parent.known() != parent.prompt) {
    fail("scheduler: sequence {} can be forked between its prompt's last step and its first token alone", id);
  }
  std::vector<SequenceId> children;
  for (int index = 0; index < count; ++index) {
    Sequence& child = insert(std::make_unique<Sequence>(next_id_, parent.facts, rules_, pools_));
    child.next_wanted = child.prompt;
    child.awaits_token = true;
    child.cached_tokens = child.prompt;
    children.push_back(child.id);
    if (!has_slot() || !child.pages.fork(parent.pages, parent.prompt)) continue;
    child.computed = parent.computed;
    start(child);
  }
  return children;
}

void Scheduler::append(SequenceId id, std::int32_t token) {
  Sequence& sequence = find(id);
  if (!sequence.awaits_token) fail("scheduler: sequence {} awaits no token", id);
  sequence.tokens.push_back(token);
  sequence.awaits_token = false;
}

void Scheduler::remove(SequenceId id) {
  Sequence& sequence = find(id);
  sequence.leaves = true;
  if (sequence.under_way) return;
  leave(sequence);
  sequences_.erase(id);
}

std::vector<WantedRow> Scheduler::finish(const StepPlan& plan, const StepOutcome& outcome) {
  const std::vector<RowRun>& runs = plan.rows.runs;
  if (under_way_.empty() || plan.step != under_way_.front()) {
    fail("scheduler: step {} is finished, and {} are under way, from {} on", plan.step, under_way_.size(),
         under_way_.empty() ? step_ : under_way_.front());
  }
  if (outcome.settled.size() != runs.size()) {
    fail("scheduler: the outcome of {} runs for a step of {}", outcome.settled.size(), runs.size());
  }
  under_way_.pop_front();
  std::vector<WantedRow> wanted;
  for (std::size_t index = 0; index < runs.size(); ++index) {
    Sequence& sequence = at_slot(runs[index].slot);
    sequence.under_way = false;
    settle(sequence, runs[index], outcome.settled[index], wanted);
    publish(sequence);
    sequence.pages.slide(sequence.computed);
    if (!sequence.is_in_prompt() && sequence.known() - sequence.computed <= 1) sequence.pages.decode_only();
    if (sequence.leaves) remove(sequence.id);
  }
  for (const PageCopy& copy : plan.copies) {
    pools_.pools[static_cast<std::size_t>(copy.group)].pages.release(copy.from);
  }
  return wanted;
}

void Scheduler::settle(Sequence& sequence, const RowRun& run, std::int32_t settled, std::vector<WantedRow>& wanted) {
  const bool is_prompt = sequence.is_in_prompt();
  settled = is_prompt ? sequence.prefill.finish(run, settled, sequence.wanted_from()) : run.rows;
  sequence.computed = is_prompt ? sequence.prefill.computed() : run.end_position();
  if (run.layers.end < rules_.layers) return;
  const std::int64_t end = run.first_position + settled;
  for (std::int64_t position = std::max(run.first_position, run.wanted_from); position < end; ++position) {
    const bool samples = position + 1 == sequence.known() && sequence.known() < sequence.facts.max_tokens;
    wanted.push_back({sequence.id, position, samples});
    sequence.awaits_token |= samples;
    sequence.next_wanted = position + 1;
  }
}

// Of whole pieces of the grid: a piece that the prompt's end cuts short is completed by decoding.
void Scheduler::publish(Sequence& sequence) {
  for (std::int64_t end = sequence.published + grid(); end <= sequence.computed; end += grid()) {
    if (!options_.prefix_cache || (end > sequence.prompt && !options_.reuse_generated)) return;
    extend_keys(sequence, end);
    sequence.pages.publish(sequence.published, end, sequence.keys);
    sequence.published = end;
  }
}

void Scheduler::extend_keys(Sequence& sequence, std::int64_t positions) const {
  const std::int64_t size = options_.page_size;
  for (std::int64_t page = std::ssize(sequence.keys); (page + 1) * size <= positions; ++page) {
    const std::span tokens(sequence.tokens.data() + page * size, static_cast<std::size_t>(size));
    sequence.keys.push_back(next_page_key(page == 0 ? options_.identity : sequence.keys.back(), tokens));
  }
}

SequenceStatus Scheduler::status(SequenceId id) const {
  const Sequence& sequence = find(id);
  return {.state = sequence.state,
          .slot = sequence.slot,
          .computed = sequence.computed,
          .cached_tokens = sequence.cached_tokens.value_or(0),
          .preemptions = sequence.preemptions,
          .passes_per_token = sequence.prefill.passes_per_token(),
          .capped = sequence.prefill.was_capped()};
}

SchedulerCounts Scheduler::counts() const {
  SchedulerCounts counts = counts_;
  counts.running = std::ssize(running_);
  counts.swapped = std::ranges::count(waiting_, SequenceState::kSwapped, &Sequence::state);
  counts.waiting = std::ssize(waiting_) - counts.swapped;
  return counts;
}

PageCounts Scheduler::pages(int group) const { return pools_.pools.at(static_cast<std::size_t>(group)).pages.counts(); }

std::int64_t Scheduler::largest_step(std::int64_t decoding) const {
  return std::max(options_.budget, decoding * rules_.layers + std::max(options_.budget / 4, rules_.largest_uncut()));
}

Sequence& Scheduler::find(SequenceId id) const {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) fail("scheduler: there is no sequence {}", id);
  return *found->second;
}

Sequence& Scheduler::insert(std::unique_ptr<Sequence> sequence) {
  waiting_.insert(sequence.get());
  return *sequences_.emplace(next_id_++, std::move(sequence)).first->second;
}

}  // namespace kvloom
