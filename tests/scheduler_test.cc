// The scheduler against a simple model: whatever comes, in whatever order, accounts balance, everything ends, and what
// is computed of a sequence follows from that sequence alone.
#include "infer/engine/scheduler.h"

#include <gtest/gtest.h>

#include <iostream>
#include <string>

#include "tests/support/random.h"
#include "tests/support/scheduler_world.h"

namespace kvloom {
namespace {

using test::LiveSequence;
using test::Random;
using test::World;

std::vector<PageGroup> groups_of(const KvMap& map) {
  std::set<std::int64_t> reaches;
  for (const int source : map.kv_layers()) {
    for (const KvPart part : kKvParts) {
      std::int64_t reach = 1;
      for (const int reader : map.readers(part, source)) {
        reach = map.window(reader) == 0 || reach == 0 ? 0 : std::max(reach, map.window(reader));
      }
      if (map.owns(part, source)) reaches.insert(reach);
    }
  }
  std::vector<PageGroup> groups;
  for (const std::int64_t reach : reaches) groups.push_back({.reach = reach, .pages = 1, .swap_places = 0});
  return groups;
}

KvMap random_map(Random& random) {
  static const std::vector<std::string> kNamed = {
      "none",   "cla:2",          "yoco",          "sandwich-top:3",    "pizza-top:3",       "sandwich-middle:3",
      "lckv:2", "pizza-bottom:3", "lasagna-top:3", "lasagna-quarter:2", "sandwich-quarter:3"};
  const int layers = static_cast<int>(random.integer(4, 8));
  const std::int64_t window = random.integer(1, 12);
  if (random.flip()) {
    return KvMap::parse(kNamed[static_cast<std::size_t>(random.integer(0, std::ssize(kNamed) - 1))], layers, window);
  }
  std::vector<KvReads> reads;
  const bool upward = random.flip();
  for (int layer = 0; layer < layers; ++layer) {
    const auto any_source = [&] {
      const bool own = random.integer(0, 2) == 0;
      return own ? layer : static_cast<int>(random.integer(0, upward ? layers - 1 : layer));
    };
    const int source = any_source();
    reads.push_back({{source, random.integer(0, 3) == 0 ? any_source() : source},
                     random.integer(0, 2) == 0 ? random.integer(1, 12) : 0});
  }
  return KvMap::from_reads(std::move(reads));
}

SchedulerOptions random_options(Random& random, const KvMap& map) {
  SchedulerOptions options;
  options.groups = groups_of(map);
  options.page_size = random.integer(1, 6);
  options.max_sequences = random.integer(1, 8);
  options.max_chunk = random.integer(1, 20);
  options.window = random.integer(1, 12);
  options.grid = options.page_size * random.integer(1, 5);
  options.budget = random.integer(1, map.layers() * 40);
  options.prefill_passes = random.integer(0, 5);
  options.prefix_cache = random.integer(0, 3) > 0;
  options.reuse_generated = random.flip();
  const std::int64_t swap = random.flip() ? random.integer(1, 60) : 0;
  for (PageGroup& group : options.groups) {
    group.pages = random.integer(8, 100) / options.page_size + 4;
    group.swap_places = swap;
  }
  return options;
}

NewSequence random_sequence(Random& random) {
  NewSequence sequence;
  // Prompts begin alike, so that prefixes are found.
  const std::int64_t length = random.integer(1, random.integer(1, 50));
  const std::int64_t same = random.integer(0, length);
  for (std::int64_t p = 0; p < length; ++p) {
    sequence.prompt.push_back(p < same ? static_cast<std::int32_t>(p % 3)
                                       : static_cast<std::int32_t>(random.integer(0, 2)));
  }
  if (random.integer(0, 9) == 0) sequence.generated = random.tokens(static_cast<std::size_t>(random.integer(1, 20)), 3);
  const std::int64_t known = length + std::ssize(sequence.generated);
  sequence.max_tokens = known + random.integer(0, random.integer(0, 30));
  sequence.priority = static_cast<int>(random.integer(0, 2));
  sequence.arrival = random.real(0, 10);
  if (random.integer(0, 4) == 0) sequence.score_from = random.integer(0, length - 1);
  return sequence;
}

// The same sequence with nobody else, all the pages it wants, another budget and other chunks.
LiveSequence alone(const KvMap& map, SchedulerOptions options, const LiveSequence& of, SequenceStatus& status) {
  for (PageGroup& group : options.groups) group = {group.reach, 400, 0};
  options.prefix_cache = false;
  options.max_chunk = options.max_chunk % 7 + 1;
  options.budget = options.budget * 3 / 2 + 1;
  World world(map, options);
  const SequenceId id = world.add(of.facts, of.salt);
  while (!world.live().at(id).has_ended() && world.step([] { return 0; })) {
  }
  status = world.scheduler().status(id);
  return world.live().at(id);
}

void check_as_alone(const KvMap& map, const SchedulerOptions& options, const LiveSequence& live) {
  SequenceStatus status{};
  const LiveSequence other = alone(map, options, live, status);
  EXPECT_EQ(live.known.tokens, other.known.tokens);
  for (const test::ComputedRow& row : live.computed) {
    EXPECT_TRUE(other.computed.contains(row)) << "position " << std::get<0>(row) << " from layer " << std::get<1>(row);
  }
  // What it found in the cache later, or after its prompt, others have computed.
  if (live.last.preemptions > 0 || live.last.cached_tokens == live.known.prompt) return;
  for (const test::ComputedRow& row : other.computed) {
    if (std::get<0>(row) < live.last.cached_tokens) continue;
    EXPECT_TRUE(live.computed.contains(row)) << "position " << std::get<0>(row) << " from layer " << std::get<1>(row);
  }
  if (live.last.cached_tokens > 0) return;
  EXPECT_EQ(live.last.passes_per_token, status.passes_per_token);
  EXPECT_EQ(live.last.capped, status.capped);
}

// After all that came and went, the scheduler does with new sequences what a new one does.
void expect_as_new(World& used, const KvMap& map, const SchedulerOptions& options, Random& random) {
  World fresh(map, options);
  for (int count = 0; count < 8; ++count) {
    NewSequence sequence = random_sequence(random);
    for (std::int32_t& token : sequence.prompt) token += 3;  // nothing that is cached begins so
    try {
      fresh.add(sequence, 1);
      used.add(sequence, 1);
    } catch (const InputError&) {
    }
  }
  const auto no_forks = [] { return 0; };
  for (bool goes_on = true; goes_on && !testing::Test::HasFailure();) {
    goes_on = fresh.step(no_forks);
    EXPECT_EQ(used.step(no_forks), goes_on);
    EXPECT_EQ(used.last_plan.rows, fresh.last_plan.rows);
    EXPECT_EQ(used.last_plan.swap_out.size(), fresh.last_plan.swap_out.size());
    EXPECT_EQ(used.last_plan.pages.size(), fresh.last_plan.pages.size());
    EXPECT_EQ(used.remove_ended().size(), fresh.remove_ended().size());
  }
  EXPECT_TRUE(used.live().empty());
}

struct Seen {
  std::int64_t operations = 0, ended = 0, cancelled = 0, rejected = 0, preemptions = 0, swaps = 0, copies = 0, hits = 0;
};

// One scheduler's life: sequences come, fork, are cancelled, end; at last all that is left ends.
void live_once(Random& random, Seen& seen) {
  const KvMap map = random_map(random);
  const SchedulerOptions options = random_options(random, map);
  SCOPED_TRACE(map.explicit_form() + " page " + std::to_string(options.page_size) + " grid " +
               std::to_string(options.grid) + " window " + std::to_string(options.window));
  World world(map, options);
  const auto add = [&] {
    try {
      world.add(random_sequence(random), static_cast<std::uint64_t>(random.integer(0, 5)));
    } catch (const InputError&) {
      ++seen.rejected;
    }
  };
  const auto end = [&] {
    for (const LiveSequence& live : world.remove_ended()) {
      ++seen.ended;
      if (live.first_wanted == 0) check_as_alone(map, options, live);
    }
  };
  const auto forks = [&] { return random.integer(0, 7) == 0 ? static_cast<int>(random.integer(1, 3)) : 0; };
  for (int turn = 0; turn < 150; ++turn) {
    if (world.live().size() < 25 && random.integer(0, 3) == 0) add();
    if (!world.live().empty() && random.integer(0, 29) == 0) {
      world.remove(std::next(world.live().begin(), random.integer(0, std::ssize(world.live()) - 1))->first);
      ++seen.cancelled;
    }
    world.step(forks);
    end();
    if (testing::Test::HasFailure()) return;
  }
  std::int64_t most_steps = 10;
  for (const auto& [id, live] : world.live()) most_steps += 3 * (live.facts.max_tokens + 2) * (map.layers() + 12);
  for (; !world.live().empty() && most_steps > 0; --most_steps) {
    world.step([] { return 0; });
    end();
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_TRUE(world.live().empty()) << "sequences do not end";
  for (std::size_t group = 0; group < options.groups.size(); ++group) {
    EXPECT_EQ(world.scheduler().pages(static_cast<int>(group)).held, 0);
  }
  expect_as_new(world, map, options, random);
  const SchedulerCounts counts = world.scheduler().counts();
  EXPECT_EQ(counts.waiting + counts.running + counts.swapped, 0);
  EXPECT_LE(counts.prefix_hits, counts.prefix_queries);
  seen.operations += world.operations;
  seen.preemptions += world.preemptions;
  seen.swaps += world.swaps;
  seen.copies += world.copies;
  seen.hits += counts.prefix_hits;
}

TEST(Scheduler, WhateverComesEndsAndIsComputedAsIfAlone) {
  Random random;
  Seen seen;
  while (seen.operations < 500'000 && !HasFailure()) live_once(random, seen);
  std::cout << seen.operations << " operations: " << seen.ended << " sequences ended, " << seen.cancelled
            << " cancelled, " << seen.rejected << " rejected; " << seen.preemptions << " preemptions, " << seen.swaps
            << " pages swapped, " << seen.copies << " copied, " << seen.hits << " tokens found\n";
  for (const std::int64_t count :
       {seen.ended, seen.cancelled, seen.rejected, seen.preemptions, seen.swaps, seen.copies, seen.hits}) {
    EXPECT_GT(count, 0) << "something never came about";
  }
}

}  // namespace
}  // namespace kvloom
