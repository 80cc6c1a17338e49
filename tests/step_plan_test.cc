// Step plans as bytes: what comes back is what went in, digests tell plans apart, and no bytes do harm.
#include "infer/ranks/step_plan_bytes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/error.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

using test::Random;

std::int32_t number(Random& random) {
  return static_cast<std::int32_t>(random.flip() ? random.integer(0, 9) : random.integer(0, (1LL << 31) - 1));
}

RowRun random_run(Random& random) {
  RowRun run{.slot = number(random),
             .kind = static_cast<RowKind>(random.integer(0, 2)),
             .layers = {static_cast<int>(random.integer(0, 3)), static_cast<int>(random.integer(4, 90))},
             .first_position = random.integer(0, 1LL << 40),
             .rows = static_cast<std::int32_t>(random.integer(1, 20))};
  run.block_first = random.integer(0, run.first_position);
  run.wanted_from = random.integer(0, 1LL << 40);
  run.entering = static_cast<std::int32_t>(random.integer(0, run.rows));
  run.forced = static_cast<std::int32_t>(random.integer(1, run.rows));
  return run;
}

StepPlan random_plan(Random& random) {
  StepPlan plan;
  const auto times = [&](const std::function<void()>& what) {
    for (std::int64_t left = random.integer(0, 5); left > 0; --left) what();
  };
  plan.step = random.integer(0, 1LL << 50);
  times([&] { plan.swap_out.push_back({number(random), number(random), number(random)}); });
  times([&] { plan.swap_in.push_back({number(random), number(random), number(random)}); });
  times([&] { plan.copies.push_back({number(random), number(random), number(random)}); });
  times([&] { plan.pages.push_back({number(random), number(random), number(random), number(random)}); });
  times([&] { plan.rows.runs.push_back(random_run(random)); });
  std::size_t tokens = 0;
  for (const RowRun& run : plan.rows.runs) tokens += run.layers.first == 0 ? static_cast<std::size_t>(run.rows) : 0;
  plan.rows.tokens = random.tokens(tokens, 1LL << 31);
  return plan;
}

TEST(StepPlan, BytesBringThePlanBack) {
  Random random;
  for (int count = 0; count < 2000; ++count) {
    const StepPlan plan = random_plan(random);
    const StepPlan back = parse_step_plan(to_bytes(plan));
    ASSERT_EQ(back, plan);
    ASSERT_EQ(digest(back), digest(plan));
  }
}

// Each changes one member of a plan that has one of everything.
TEST(StepPlan, EveryMemberCountsInTheDigest) {
  StepPlan plan{.step = 1,
                .swap_out = {{0, 1, 2}},
                .swap_in = {{3, 4, 5}},
                .copies = {{6, 7, 8}},
                .pages = {{9, 10, 11, 12}},
                .rows = {{{.layers = {0, 4}, .first_position = 5, .rows = 2}}, {7, 8}}};
  const std::vector<std::function<void(StepPlan&)>> changes = {
      [](StepPlan& p) { ++p.step; },
      [](StepPlan& p) { ++p.swap_out[0].group; },
      [](StepPlan& p) { ++p.swap_out[0].page; },
      [](StepPlan& p) { ++p.swap_out[0].place; },
      [](StepPlan& p) { ++p.swap_in[0].group; },
      [](StepPlan& p) { ++p.swap_in[0].page; },
      [](StepPlan& p) { ++p.swap_in[0].place; },
      [](StepPlan& p) { ++p.copies[0].group; },
      [](StepPlan& p) { ++p.copies[0].from; },
      [](StepPlan& p) { ++p.copies[0].to; },
      [](StepPlan& p) { ++p.pages[0].slot; },
      [](StepPlan& p) { ++p.pages[0].group; },
      [](StepPlan& p) { ++p.pages[0].index; },
      [](StepPlan& p) { ++p.pages[0].page; },
      [](StepPlan& p) { ++p.rows.runs[0].slot; },
      [](StepPlan& p) { p.rows.runs[0].kind = RowKind::kChunk; },
      [](StepPlan& p) { ++p.rows.runs[0].layers.first; },
      [](StepPlan& p) { ++p.rows.runs[0].layers.end; },
      [](StepPlan& p) { ++p.rows.runs[0].first_position; },
      [](StepPlan& p) { ++p.rows.runs[0].rows; },
      [](StepPlan& p) { ++p.rows.runs[0].block_first; },
      [](StepPlan& p) { ++p.rows.runs[0].wanted_from; },
      [](StepPlan& p) { ++p.rows.runs[0].entering; },
      [](StepPlan& p) { ++p.rows.runs[0].forced; },
      [](StepPlan& p) { ++p.rows.tokens[0]; },
      [](StepPlan& p) { p.swap_in.swap(p.swap_out); },
      [](StepPlan& p) { p.swap_in.push_back(p.swap_in[0]); },
  };
  std::vector<std::uint64_t> digests{digest(plan)};
  for (const auto& change : changes) {
    StepPlan changed = plan;
    change(changed);
    EXPECT_FALSE(changed == plan);
    digests.push_back(digest(changed));
  }
  std::ranges::sort(digests);
  EXPECT_EQ(std::ranges::adjacent_find(digests), digests.end());
}

TEST(StepPlan, BrokenBytesAreRefusedOrAnotherPlan) {
  Random random;
  int refused = 0;
  for (int count = 0; count < 20000; ++count) {
    std::vector<std::byte> bytes = to_bytes(random_plan(random));
    for (std::int64_t left = random.integer(1, 3); left > 0 && !bytes.empty(); --left) {
      const auto place = static_cast<std::size_t>(random.integer(0, std::ssize(bytes) - 1));
      const std::int64_t choice = random.integer(0, 3);
      if (choice == 0) bytes.resize(place);
      if (choice == 1) bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(place), std::byte{1});
      if (choice >= 2) bytes[place] = static_cast<std::byte>(random.integer(0, 255));
    }
    try {
      ASSERT_EQ(to_bytes(parse_step_plan(bytes)), bytes);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 5000);
}

TEST(StepPlan, IsEmptyWhenNothingIsToDo) {
  EXPECT_TRUE(StepPlan{}.is_empty());
  EXPECT_FALSE((StepPlan{.swap_out = {{0, 0, 0}}}).is_empty());
  EXPECT_FALSE((StepPlan{.swap_in = {{0, 0, 0}}}).is_empty());
  EXPECT_FALSE((StepPlan{.copies = {{0, 0, 1}}}).is_empty());
  EXPECT_FALSE((StepPlan{.pages = {{0, 0, 0, 0}}}).is_empty());
  StepPlan plan;
  plan.rows.runs.push_back({});
  EXPECT_FALSE(plan.is_empty());
}

}  // namespace
}  // namespace kvloom
