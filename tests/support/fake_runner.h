// Carries out step plans without tensors: of every position in every page it keeps whose K/V they are. A run that
// would read what was not written, or write what others read, fails the test.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "infer/engine/scheduler.h"

namespace kvloom::test {

inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t value = (a ^ (b + 0x9e3779b97f4a7c15u + (a << 6) + (a >> 2))) * 0xbf58476d1ce4e5b9u;
  return value ^ (value >> 29);
}

// A sequence as the test knows it.
struct KnownSequence {
  std::vector<std::int32_t> tokens;
  std::int64_t prompt = 0;
  std::vector<std::uint64_t> prefix;  // by position: a hash of the tokens up to it

  void push(std::int32_t token) {
    tokens.push_back(token);
    prefix.push_back(mix(prefix.empty() ? 17 : prefix.back(), static_cast<std::uint64_t>(token)));
  }
};

// What a page has at one position.
struct Content {
  std::uint64_t prefix = 0;
  std::int64_t made_by = -1;  // where the block of the prompt ended that it was computed in; 0: decoding
  std::size_t segments = 0;   // so many have left their final K/V

  friend bool operator==(const Content&, const Content&) = default;
};

class FakeRunner {
 public:
  FakeRunner(const KvMap& map, const SchedulerOptions& options) : options_(options), rules_(map) {
    for (const Segment& segment : rules_.segments) segments_with_kv_ += segment.first < rules_.kv_end ? 1 : 0;
    for (const PageGroup& group : options.groups) {
      memory_.emplace_back(static_cast<std::size_t>(group.pages * options.page_size));
      swapped_.emplace_back(static_cast<std::size_t>(group.swap_places * options.page_size));
    }
  }

  // The tables as the plan has them; to be called before run().
  void assign(const StepPlan& plan) {
    for (const PageAssignment& page : plan.pages) tables_[{page.slot, page.group}][page.index] = page.page;
  }
  // `by_slot`: the sequences that run. Returns so many settled rows as their prefix says.
  StepOutcome run(const StepPlan& plan, const std::map<std::int32_t, const KnownSequence*>& by_slot) {
    for (const PageSwap& swap : plan.swap_out) move(memory_, swap.page, swapped_, swap.place, swap.group);
    for (const PageSwap& swap : plan.swap_in) move(swapped_, swap.place, memory_, swap.page, swap.group);
    for (const PageCopy& copy : plan.copies) move(memory_, copy.from, memory_, copy.to, copy.group);
    StepOutcome outcome;
    std::size_t token = 0;
    for (const RowRun& run : plan.rows.runs) {
      const KnownSequence& sequence = *by_slot.at(run.slot);
      check(run, sequence);
      for (std::int64_t p = run.first_position; run.layers.first == 0 && p < run.end_position(); ++p) {
        EXPECT_EQ(plan.rows.tokens.at(token++), sequence.tokens.at(static_cast<std::size_t>(p)));
      }
      outcome.settled.push_back(settled(run, sequence));
      write(run, sequence, std::max(outcome.settled.back(), run.kind == RowKind::kWavefront ? run.forced : 0));
    }
    EXPECT_EQ(token, plan.rows.tokens.size());
    return outcome;
  }

  // The pages of the slot's sequence that hold `position` or later ones.
  std::vector<std::int32_t> pages(std::int32_t slot, std::size_t group, std::int64_t position) {
    const auto& table = tables_[{slot, static_cast<int>(group)}];
    std::vector<std::int32_t> pages;
    for (auto at = table.lower_bound(position / options_.page_size); at != table.end(); ++at)
      pages.push_back(at->second);
    return pages;
  }
  // The slot's sequence is another one from now on.
  void leave(std::int32_t slot) {
    for (std::size_t group = 0; group < memory_.size(); ++group) tables_[{slot, static_cast<int>(group)}].clear();
  }
  // By page of the group that the run writes.
  std::set<std::int32_t> written(const RowRun& run, std::size_t group) {
    std::set<std::int32_t> pages;
    for (std::int64_t p = run.first_position; p < run.end_position() && run.layers.first < rules_.kv_end; ++p) {
      pages.insert(tables_[{run.slot, static_cast<int>(group)}].at(p / options_.page_size));
    }
    return pages;
  }
  // The first position that a row at `position` sees.
  std::int64_t first_seen(std::size_t group, std::int64_t position) const {
    const std::int64_t reach = options_.groups[group].reach;
    return reach == 0 ? 0 : std::max<std::int64_t>(0, position - reach + 1);
  }
  const PrefillRules& rules() const { return rules_; }

 private:
  using Memory = std::vector<std::vector<Content>>;

  void move(const Memory& from, std::int32_t source, Memory& to, std::int32_t target, std::int32_t group) const {
    const auto g = static_cast<std::size_t>(group);
    std::copy_n(from.at(g).begin() + source * options_.page_size, options_.page_size,
                to.at(g).begin() + target * options_.page_size);
  }
  Content& at(std::int32_t slot, std::size_t group, std::int64_t position) {
    const auto& table = tables_[{slot, static_cast<int>(group)}];
    const auto page = table.find(position / options_.page_size);
    if (page == table.end()) throw std::runtime_error("no page for position " + std::to_string(position));
    return memory_[group].at(
        static_cast<std::size_t>(page->second * options_.page_size + position % options_.page_size));
  }
  std::size_t segment_of(const RowRun& run) const {
    std::size_t segment = 0;
    while (rules_.segments[segment].first != run.layers.first) ++segment;
    return segment;
  }
  std::int64_t block_end(std::int64_t position, const KnownSequence& sequence) const {
    if (position >= sequence.prompt) return 0;
    if (!rules_.upward) return 1;
    return std::min(sequence.prompt, (position / options_.grid + 1) * options_.grid);
  }

  void check(const RowRun& run, const KnownSequence& sequence) {
    const bool decodes = run.kind == RowKind::kDecode;
    const std::size_t segment = segment_of(run);
    EXPECT_EQ(decodes, run.first_position >= sequence.prompt);
    EXPECT_LE(run.end_position(), decodes ? std::ssize(sequence.tokens) : block_end_or_prompt(run, sequence));
    EXPECT_EQ(run.layers.end, decodes ? rules_.layers : rules_.segments[segment].last + 1);
    if (decodes && rules_.upward) {
      EXPECT_EQ(run.rows, 1);
    }
    if (!decodes) {
      EXPECT_EQ(run.kind == RowKind::kWavefront, rules_.segments[segment].iterated);
    }
    const std::size_t needed = decodes ? segments_with_kv_ : std::min(segment + 1, segments_with_kv_);
    for (std::size_t group = 0; group < memory_.size(); ++group) {
      std::int64_t p = first_seen(group, run.first_position);
      for (; p < run.first_position; ++p) {
        const Content& content = at(run.slot, group, p);
        // Within a block earlier rows have done this segment; below the last source all have.
        const std::size_t least = p < run.block_first ? segments_with_kv_ : needed;
        EXPECT_GE(content.segments, least) << "position " << p << " of the run from " << run.first_position;
        EXPECT_EQ(content.prefix, sequence.prefix.at(static_cast<std::size_t>(p))) << "position " << p;
        if (!options_.reuse_generated) {
          EXPECT_EQ(content.made_by, block_end(p, sequence)) << "position " << p;
        }
      }
      for (; segment > 0 && p < run.end_position(); ++p) {
        EXPECT_GE(at(run.slot, group, p).segments, std::min(segment, segments_with_kv_)) << "its own position " << p;
      }
    }
  }
  std::int64_t block_end_or_prompt(const RowRun& run, const KnownSequence& sequence) const {
    return rules_.upward ? block_end(run.first_position, sequence) : sequence.prompt;
  }
  std::int32_t settled(const RowRun& run, const KnownSequence& sequence) const {
    if (run.kind != RowKind::kWavefront) return run.rows;
    const std::uint64_t key = mix(sequence.prefix[static_cast<std::size_t>(run.first_position)],
                                  static_cast<std::uint64_t>(run.layers.first * 1000 + run.entering));
    return static_cast<std::int32_t>(key % static_cast<std::uint64_t>(run.rows + 1));
  }
  void write(const RowRun& run, const KnownSequence& sequence, std::int32_t settled) {
    if (run.layers.first >= rules_.kv_end) return;
    const std::size_t before = run.kind == RowKind::kDecode ? 0 : segment_of(run);
    const std::size_t after = run.kind == RowKind::kDecode ? segments_with_kv_ : before + 1;
    for (std::size_t group = 0; group < memory_.size(); ++group) {
      for (std::int32_t row = 0; row < run.rows; ++row) {
        const std::int64_t p = run.first_position + row;
        at(run.slot, group, p) = {sequence.prefix[static_cast<std::size_t>(p)], block_end(p, sequence),
                                  row < settled ? after : before};
      }
    }
  }

  SchedulerOptions options_;
  PrefillRules rules_;
  std::size_t segments_with_kv_ = 0;
  Memory memory_;
  Memory swapped_;
  std::map<std::pair<std::int32_t, std::int32_t>, std::map<std::int64_t, std::int32_t>> tables_;  // slot, group
};

}  // namespace kvloom::test
