// A scheduler, the sequences it knows, and a runner without tensors: what an engine does, with every step checked.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "infer/engine/scheduler.h"
#include "kernels/error.h"
#include "tests/support/fake_runner.h"

namespace kvloom::test {

// A pass of a wavefront, or a row of another run: position, layer, kind, and of a pass its rows, entering and forced.
using ComputedRow = std::tuple<std::int64_t, int, RowKind, std::int32_t, std::int32_t, std::int32_t>;

struct LiveSequence {
  NewSequence facts;
  KnownSequence known;
  std::uint64_t salt = 0;              // what it generates follows from it
  std::int64_t first_wanted = 0;       // of a child, what its parent had is not wanted
  std::vector<std::int64_t> expected;  // positions whose logits are wanted, in order
  std::vector<std::int64_t> delivered;
  std::set<ComputedRow> computed;
  SequenceStatus last{};

  bool has_ended() const { return delivered == expected; }
};

inline std::vector<std::int64_t> expected_rows(const NewSequence& facts, std::int64_t from) {
  std::vector<std::int64_t> rows;
  const std::int64_t prompt = std::ssize(facts.prompt);
  const std::int64_t generated = std::ssize(facts.generated);
  const std::int64_t first = facts.score_from.value_or(generated == 0 ? prompt - 1 : prompt);
  for (std::int64_t p = std::max(first, from); p < prompt; ++p) rows.push_back(p);
  for (std::int64_t p = prompt + std::max<std::int64_t>(0, generated - 1); p < facts.max_tokens - 1; ++p) {
    rows.push_back(p);
  }
  return rows;
}

class World {
 public:
  World(const KvMap& map, const SchedulerOptions& options)
      : options_(options), scheduler_(map, options), runner_(map, options) {}

  SequenceId add(const NewSequence& facts, std::uint64_t salt) {
    const SequenceId id = scheduler_.add(facts);
    insert(id, facts, salt, 0);
    return id;
  }
  void remove(SequenceId id) {
    if (live_.at(id).last.slot >= 0) runner_.leave(live_.at(id).last.slot);
    scheduler_.remove(id);
    live_.erase(id);
  }
  // Plans, checks and carries out one step; `forks` says how many children a prompt gets. False: nothing was to do.
  template <typename Forks>
  bool step(Forks&& forks) {
    std::set<SequenceId> decoding;
    for (const auto& [id, live] : live_) {
      const bool ready = live.last.slot >= 0 && live.last.computed >= live.known.prompt;
      if (ready && live.last.computed < std::ssize(live.known.tokens) && !live.has_ended()) decoding.insert(id);
    }
    const StepPlan plan = scheduler_.plan();
    last_plan = plan;
    ++operations;
    by_slot_.clear();
    check_states(decoding, plan);
    if (plan.is_empty()) return false;
    check_cost(plan);
    check_writes(plan);
    check_accounts(&plan);
    std::map<std::int32_t, const KnownSequence*> known;
    for (const auto& [slot, id] : by_slot_) known[slot] = &live_.at(id).known;
    const StepOutcome outcome = runner_.run(plan, known);
    for (const RowRun& run : plan.rows.runs) note(run);
    deliver(scheduler_.finish(plan, outcome), forks);
    ++operations;
    for (auto& [id, live] : live_) live.last = scheduler_.status(id);
    check_accounts(nullptr);
    return true;
  }
  // What has all its logits is removed; returns it.
  std::vector<LiveSequence> remove_ended() {
    std::vector<LiveSequence> ended;
    for (auto at = live_.begin(); at != live_.end();) {
      const auto each = at++;
      if (!each->second.has_ended()) continue;
      ended.push_back(each->second);
      remove(each->first);
    }
    return ended;
  }

  const std::map<SequenceId, LiveSequence>& live() const { return live_; }
  const Scheduler& scheduler() const { return scheduler_; }

  StepPlan last_plan;
  std::int64_t operations = 0;
  std::int64_t preemptions = 0, swaps = 0, copies = 0, runs = 0;  // that came about

 private:
  void insert(SequenceId id, const NewSequence& facts, std::uint64_t salt, std::int64_t first_wanted) {
    LiveSequence live{.facts = facts,
                      .known = {},
                      .salt = salt,
                      .first_wanted = first_wanted,
                      .expected = {},
                      .delivered = {},
                      .computed = {},
                      .last = {}};
    live.known.prompt = std::ssize(facts.prompt);
    for (const std::int32_t token : facts.prompt) live.known.push(token);
    for (const std::int32_t token : facts.generated) live.known.push(token);
    live.expected = expected_rows(facts, first_wanted);
    live.last = scheduler_.status(id);
    live_.emplace(id, std::move(live));
    ++operations;
  }

  static auto place(SequenceId id, const LiveSequence& live) {
    return std::tuple(-live.facts.priority, live.facts.arrival, id);
  }

  // Admission in order; who decodes goes on, or was preempted, twice at most; what waits and idles goes on.
  void check_states(const std::set<SequenceId>& decoding, const StepPlan& plan) {
    std::set<std::int32_t> slots;
    for (const RowRun& run : plan.rows.runs) {
      EXPECT_TRUE(slots.insert(run.slot).second) << "two runs of slot " << run.slot;
    }
    auto last_admitted = std::tuple(-1000, -1.0, SequenceId{0});
    for (auto& [id, live] : live_) {
      const SequenceStatus now = scheduler_.status(id);
      if (live.last.slot >= 0 && now.slot < 0) runner_.leave(live.last.slot);
      if (live.last.slot < 0 && now.slot >= 0) last_admitted = std::max(last_admitted, place(id, live));
      if (now.slot >= 0) {
        EXPECT_TRUE(by_slot_.emplace(now.slot, id).second) << "slot " << now.slot << " twice";
      }
      EXPECT_LE(now.preemptions, 2);
      EXPECT_EQ(now.slot >= 0, now.state == SequenceState::kRunning);
      if (now.state == SequenceState::kWaiting) {
        EXPECT_EQ(now.computed, 0);
      }
      preemptions += now.preemptions - live.last.preemptions;
      if (decoding.contains(id)) {
        EXPECT_TRUE(slots.contains(now.slot) || now.preemptions > live.last.preemptions);
      }
      if (plan.is_empty()) {
        EXPECT_TRUE(live.has_ended()) << "sequence " << id << " waits, and nothing is done";
      }
    }
    for (auto& [id, live] : live_) {
      const SequenceStatus now = scheduler_.status(id);
      const bool waits = live.last.slot < 0 && now.slot < 0 && !live.has_ended();
      if (waits) {
        EXPECT_GT(place(id, live), last_admitted) << "sequence " << id << " was passed by";
      }
      live.last = now;
    }
  }
  void check_cost(const StepPlan& plan) {
    std::int64_t decoding = 0;
    std::int64_t cost = 0;
    const PrefillRules& rules = runner_.rules();
    for (const RowRun& run : plan.rows.runs) {
      decoding += run.kind == RowKind::kDecode ? 1 : 0;
      EXPECT_LE(run.rows, run.kind == RowKind::kWavefront ? options_.window : options_.max_chunk);
      for (std::int64_t p = run.first_position; p < run.end_position(); ++p) {
        cost += (p >= run.wanted_from ? run.layers.end : std::min(run.layers.end, rules.kv_end)) - run.layers.first;
      }
    }
    EXPECT_LE(cost, scheduler_.largest_step(decoding));
    runs += std::ssize(plan.rows.runs);
    swaps += std::ssize(plan.swap_out) + std::ssize(plan.swap_in);
    copies += std::ssize(plan.copies);
  }
  // What a run writes is in no other's pages.
  void check_writes(const StepPlan& plan) {
    runner_.assign(plan);
    for (std::size_t group = 0; group < options_.groups.size(); ++group) {
      std::map<std::int32_t, int> holders;
      for (const auto& [slot, id] : by_slot_) {
        const std::int64_t first = runner_.first_seen(group, live_.at(id).last.computed);
        for (const std::int32_t page : runner_.pages(slot, group, first)) ++holders[page];
      }
      for (const RowRun& run : plan.rows.runs) {
        for (const std::int32_t page : runner_.written(run, group)) {
          EXPECT_EQ(holders[page], 1) << "page " << page << " is written, and not one sequence's alone";
        }
      }
      held_[group] = std::move(holders);
    }
  }
  void check_accounts(const StepPlan* plan) {
    for (std::size_t group = 0; group < options_.groups.size(); ++group) {
      const PageCounts counts = scheduler_.pages(static_cast<int>(group));
      EXPECT_EQ(counts.total, options_.groups[group].pages);
      EXPECT_EQ(counts.free + counts.cached + counts.held, counts.total);
      if (plan == nullptr) continue;
      std::set<std::int32_t> held;
      for (const auto& [page, holders] : held_[group]) held.insert(page);
      for (const PageCopy& copy : plan->copies) {
        if (copy.group == static_cast<int>(group)) held.insert(copy.from);
      }
      EXPECT_EQ(counts.held, std::ssize(held));
    }
  }
  void note(const RowRun& run) {
    LiveSequence& live = live_.at(by_slot_.at(run.slot));
    if (run.kind == RowKind::kWavefront) {
      live.computed.insert({run.first_position, run.layers.first, run.kind, run.rows, run.entering, run.forced});
      return;
    }
    for (std::int64_t p = run.first_position; p < run.end_position(); ++p) {
      live.computed.insert({p, run.layers.first, run.kind, 1, 0, 1});
    }
  }
  template <typename Forks>
  void deliver(const std::vector<WantedRow>& rows, Forks& forks) {
    for (const WantedRow& row : rows) {
      LiveSequence& live = live_.at(row.sequence);
      live.delivered.push_back(row.position);
      const std::int64_t known = std::ssize(live.known.tokens);
      EXPECT_EQ(row.samples, row.position + 1 == known && known < live.facts.max_tokens);
      if (!row.samples) continue;
      std::vector<SequenceId> all{row.sequence};
      const int count = known == live.known.prompt ? forks() : 0;
      const std::vector<SequenceId> children =
          count > 0 ? scheduler_.fork(row.sequence, count) : std::vector<SequenceId>{};
      for (const SequenceId child : children) {
        NewSequence facts = live.facts;
        facts.score_from.reset();
        insert(child, facts, mix(live.salt, child), live.known.prompt);
        all.push_back(child);
      }
      for (const SequenceId id : all) append(id);
    }
  }
  void append(SequenceId id) {
    LiveSequence& live = live_.at(id);
    const auto token = static_cast<std::int32_t>(mix(live.salt, live.known.tokens.size()) % 3);
    scheduler_.append(id, token);
    live.known.push(token);
    ++operations;
  }

  SchedulerOptions options_;
  Scheduler scheduler_;
  FakeRunner runner_;
  std::map<SequenceId, LiveSequence> live_;
  std::map<std::int32_t, SequenceId> by_slot_;
  std::map<std::size_t, std::map<std::int32_t, int>> held_;  // by group and page: sequences
};

}  // namespace kvloom::test
