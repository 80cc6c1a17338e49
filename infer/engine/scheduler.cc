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

void check_option(const char* name, std::int64_t value, std::int64_t least, std::int64_t most = kMost) {
  if (value < least || value > most) reject_input("scheduler: {} is {}; right are {} to {}", name, value, least, most);
}

void check(const SchedulerOptions& options, bool upward) {
  check_option("page_size", options.page_size, 1);
  check_option("max_sequences", options.max_sequences, 1);
  check_option("budget", options.budget, 0, std::numeric_limits<std::int64_t>::max() / 2);
  check_option("max_chunk", options.max_chunk, 1);
  check_option("window", options.window, 1);
  check_option("grid", options.grid, 1);
  check_option("prefill_passes", options.prefill_passes, 0);
  if (options.groups.empty()) reject_input("scheduler: no groups of pages; at least one is needed");
  for (const PageGroup& group : options.groups) {
    check_option("a group's reach", group.reach, 0);
    check_option("a group's pages", group.pages, 1);
    check_option("a group's swap_places", group.swap_places, 0);
  }
  if (upward && options.grid % options.page_size != 0) {
    reject_input("scheduler: grid is {}; right is a multiple of the page size {}", options.grid, options.page_size);
  }
}

void check(const NewSequence& sequence) {
  const std::int64_t prompt = std::ssize(sequence.prompt);
  const std::int64_t known = prompt + std::ssize(sequence.generated);
  if (prompt == 0) reject_input("sequence: the prompt is empty; it needs a token");
  if (sequence.max_tokens < known || sequence.max_tokens > kMost) {
    reject_input("sequence: max_tokens is {}; right are {} to {}", sequence.max_tokens, known, kMost);
  }
  if (sequence.score_from.has_value() && (*sequence.score_from < 0 || *sequence.score_from >= prompt)) {
    reject_input("sequence: score_from is {}; right are 0 to {}", *sequence.score_from, prompt - 1);
  }
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
  pools_.ahead_is_aligned = rules_.upward;
  slots_.assign(static_cast<std::size_t>(options_.max_sequences), nullptr);
}

SequenceId Scheduler::add(NewSequence facts) {
  check(facts);
  auto sequence = std::make_unique<Sequence>(next_id_, std::move(facts), rules_, pools_);
  for (const PagePool& pool : pools_.pools) {
    if (sequence->pages.most(pool) > pool.group.pages) {
      reject_input("sequence: {} positions take {} pages of {}; the pool has {}", sequence->most_positions(),
                   sequence->pages.most(pool), options_.page_size, pool.group.pages);
    }
  }
  return insert(std::move(sequence));
}

std::vector<SequenceId> Scheduler::fork(SequenceId id, int count) {
  const Sequence& parent = find(id);
  if (under_way_ || !parent.awaits_token || parent.known() != parent.prompt) {
    fail("scheduler: sequence {} can be forked between its prompt's last step and its first token alone", id);
  }
  std::vector<SequenceId> children;
  for (int index = 0; index < count; ++index) {
    NewSequence facts = parent.facts;
    facts.score_from.reset();
    auto child = std::make_unique<Sequence>(next_id_, std::move(facts), rules_, pools_);
    child->next_wanted = child->prompt;
    child->awaits_token = true;
    child->cached_tokens = parent.prompt;
    children.push_back(insert(std::move(child)));
    Sequence& added = find(children.back());
    const bool has_slot = std::ranges::find(slots_, nullptr) != slots_.end();
    if (!has_slot || parent.state != SequenceState::kRunning || !added.pages.fork(parent.pages, parent.prompt))
      continue;
    added.computed = parent.computed;
    added.published = parent.published;
    start(added);
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
  if (under_way_) fail("scheduler: sequence {} cannot be removed while a step is under way", id);
  if (sequence.state == SequenceState::kRunning) {
    slots_[static_cast<std::size_t>(sequence.slot)] = nullptr;
    running_.erase(&sequence);
  } else {
    waiting_.erase(&sequence);
  }
  sequences_.erase(id);
}

std::vector<WantedRow> Scheduler::finish(const StepPlan& plan, const StepOutcome& outcome) {
  const std::vector<RowRun>& runs = plan.rows.runs;
  if (!under_way_ || plan.step != step_) fail("scheduler: step {} is finished, but {} is the last", plan.step, step_);
  if (outcome.settled.size() != runs.size()) {
    fail("scheduler: the outcome of {} runs for a step of {}", outcome.settled.size(), runs.size());
  }
  under_way_ = false;
  std::vector<WantedRow> wanted;
  for (std::size_t index = 0; index < runs.size(); ++index) {
    const RowRun& run = runs[index];
    Sequence& sequence = *slots_.at(static_cast<std::size_t>(run.slot));
    const std::int64_t end = run.first_position + settle(sequence, run, outcome.settled[index]);
    for (std::int64_t position = std::max(run.first_position, run.wanted_from);
         run.layers.end == rules_.layers && position < end; ++position) {
      const bool samples = position + 1 == sequence.known() && sequence.known() < sequence.facts.max_tokens;
      wanted.push_back({sequence.id, position, samples});
      sequence.awaits_token |= samples;
      sequence.next_wanted = position + 1;
    }
    publish(sequence);
    sequence.pages.slide(sequence.computed);
  }
  for (const PageCopy& copy : plan.copies) {
    pools_.pools[static_cast<std::size_t>(copy.group)].pages.release(copy.from);
  }
  return wanted;
}

// Returns how many of the run's rows settled.
std::int32_t Scheduler::settle(Sequence& sequence, const RowRun& run, std::int32_t settled) {
  const bool is_prompt = sequence.is_in_prompt();
  settled = is_prompt ? sequence.prefill.finish(run, settled, sequence.wanted_from()) : run.rows;
  sequence.computed = is_prompt ? sequence.prefill.computed() : run.end_position();
  return settled;
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

SequenceId Scheduler::insert(std::unique_ptr<Sequence> sequence) {
  const SequenceId id = next_id_++;
  waiting_.insert(sequence.get());
  sequences_.emplace(id, std::move(sequence));
  return id;
}

}  // namespace kvloom
