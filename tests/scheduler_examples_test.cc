// The scheduler's promises, each in one small example.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "infer/engine/scheduler.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

// One group of so many pages, of four positions each.
SchedulerOptions small_options(std::int64_t pages, std::int64_t reach = 0) {
  SchedulerOptions options;
  options.groups = {{.reach = reach, .pages = pages, .swap_places = 0}};
  options.page_size = 4;
  options.max_chunk = 8;
  return options;
}

NewSequence prompt_of(std::int64_t length, std::int64_t max_tokens) {
  return {.prompt = std::vector<std::int32_t>(static_cast<std::size_t>(length), 7),
          .generated = {},
          .max_tokens = max_tokens,
          .score_from = std::nullopt};
}

// Runs steps until logits come; then appends nothing.
std::vector<WantedRow> next_logits(Scheduler& scheduler) {
  std::vector<WantedRow> wanted;
  while (wanted.empty()) {
    const StepPlan plan = scheduler.plan();
    if (plan.is_empty()) return wanted;
    StepOutcome outcome;
    for (const RowRun& run : plan.rows.runs) outcome.settled.push_back(run.rows);
    wanted = scheduler.finish(plan, outcome);
  }
  return wanted;
}

std::string refusal(Scheduler& scheduler, const NewSequence& sequence) {
  try {
    scheduler.add(sequence);
  } catch (const InputError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Scheduler, RefusesWhatCouldNeverRun) {
  Scheduler scheduler(KvMap::parse("none", 2), small_options(5));
  EXPECT_EQ(refusal(scheduler, prompt_of(20, 21)), "accepted");
  EXPECT_EQ(refusal(scheduler, prompt_of(20, 22)), "sequence: 21 positions take 6 pages of 4; the pool has 5");
  EXPECT_EQ(refusal(scheduler, prompt_of(0, 4)), "sequence: the prompt's length is 0; right are 1 to 2147483647");
  EXPECT_EQ(refusal(scheduler, prompt_of(4, 3)), "sequence: max_tokens is 3; right are 4 to 2147483647");
  NewSequence scored = prompt_of(4, 4);
  scored.score_from = 4;
  EXPECT_EQ(refusal(scheduler, scored), "sequence: score_from is 4; right are 0 to 3");
}

TEST(Scheduler, RefusesOptionsOutOfRange) {
  const KvMap map = KvMap::parse("pizza-top:1", 2);
  for (const auto member : {&SchedulerOptions::page_size, &SchedulerOptions::max_sequences,
                            &SchedulerOptions::max_chunk, &SchedulerOptions::window, &SchedulerOptions::grid}) {
    SchedulerOptions options = small_options(4);
    options.*member = 0;
    EXPECT_THROW(Scheduler(map, options), InputError);
  }
  SchedulerOptions options = small_options(4);
  options.grid = 6;
  EXPECT_THROW(Scheduler(map, options), InputError);
  EXPECT_NO_THROW(Scheduler(KvMap::parse("none", 2), options));
  options = small_options(0);
  EXPECT_THROW(Scheduler(map, options), InputError);
  options.groups.clear();
  EXPECT_THROW(Scheduler(map, options), InputError);
}

TEST(Scheduler, ALongPromptGetsItsQuarterAndStopsNobody) {
  SchedulerOptions options = small_options(100);
  options.budget = 16;
  Scheduler scheduler(KvMap::parse("none", 4), options);
  const SequenceId first = scheduler.add(prompt_of(4, 100));
  next_logits(scheduler);
  scheduler.append(first, 1);
  scheduler.add(prompt_of(40, 41));
  for (int step = 0; step < 12; ++step) {
    const StepPlan plan = scheduler.plan();
    ASSERT_EQ(plan.rows.runs.size(), 2u);
    EXPECT_EQ(plan.rows.runs[0].kind, RowKind::kDecode);
    EXPECT_EQ(plan.rows.runs[1].rows, 3);  // 12 of 16 layer-rows are left
    scheduler.finish(plan, {.settled = {1, 3}, .residual = {}});
    scheduler.append(first, 1);
  }
}

TEST(Scheduler, ForksShareFullPagesAndCopyTheLast) {
  Scheduler scheduler(KvMap::parse("none", 2), small_options(10));
  const SequenceId parent = scheduler.add(prompt_of(10, 12));
  EXPECT_THROW(scheduler.fork(parent, 1), Error);
  next_logits(scheduler);
  EXPECT_EQ(scheduler.pages(0).held, 3);
  const std::vector<SequenceId> children = scheduler.fork(parent, 2);
  EXPECT_EQ(scheduler.pages(0).held, 5);
  scheduler.remove(parent);  // what is to be copied stays
  EXPECT_EQ(scheduler.pages(0).held, 5);
  for (const SequenceId child : children) scheduler.append(child, 1);
  const StepPlan plan = scheduler.plan();
  ASSERT_EQ(plan.copies.size(), 2u);
  EXPECT_EQ(plan.copies[0].from, plan.copies[1].from);
  EXPECT_EQ(plan.rows.runs.size(), 2u);
  scheduler.finish(plan, {.settled = {1, 1}, .residual = {}});
  EXPECT_EQ(scheduler.pages(0).held, 4);
}

TEST(Scheduler, AHitNeedsOnlyPagesThatLaterRowsSee) {
  // Of 24 positions a row sees the last 5: two pages. The pool is too small for all six pages.
  const KvMap map = KvMap::parse("0s_1s", 2, 5);
  SchedulerOptions options = small_options(5, 5);
  options.max_chunk = 4;
  Scheduler scheduler(map, options);
  scheduler.remove((scheduler.add(prompt_of(25, 25)), next_logits(scheduler).at(0).sequence));
  EXPECT_LT(scheduler.pages(0).cached, 6);
  const SequenceId second = scheduler.add(prompt_of(25, 25));
  next_logits(scheduler);
  EXPECT_EQ(scheduler.status(second).cached_tokens, 24);
  EXPECT_EQ(scheduler.counts().prefix_hits, 24);
  EXPECT_EQ(scheduler.counts().prefix_queries, 50);
}

TEST(Scheduler, DecodingTakesLessOfAWindowedGroup) {
  // Chunks of 8 and what they see, 7 positions back, take 5 pages at most; a decoding row takes 3.
  SchedulerOptions options = small_options(8, 8);
  options.prefix_cache = false;
  Scheduler scheduler(KvMap::parse("0s_1s", 2, 8), options);
  const SequenceId first = scheduler.add(prompt_of(40, 60));
  const SequenceId second = scheduler.add(prompt_of(40, 60));
  EXPECT_EQ(next_logits(scheduler).at(0).sequence, first);
  EXPECT_EQ(scheduler.status(second).state, SequenceState::kWaiting);
  scheduler.append(first, 1);
  next_logits(scheduler);
  EXPECT_EQ(scheduler.status(second).state, SequenceState::kRunning);
}

TEST(Scheduler, StepsUnderWayShareTheSequencesAndWaitForNoOther) {
  SchedulerOptions options = small_options(100);
  options.steps_under_way = 2;
  Scheduler scheduler(KvMap::parse("none", 4), options);
  std::vector<SequenceId> ids;
  for (int i = 0; i < 5; ++i) {
    ids.push_back(scheduler.add(prompt_of(4, 30)));
    for (const WantedRow& row : next_logits(scheduler)) scheduler.append(row.sequence, 1);
  }
  const auto rows_of = [](const StepPlan& plan) { return std::ssize(plan.rows.runs); };
  const auto finish = [&](const StepPlan& plan) {
    const StepOutcome outcome{.settled = std::vector<std::int32_t>(plan.rows.runs.size(), 1), .residual = {}};
    return scheduler.finish(plan, outcome);
  };
  StepPlan first = scheduler.plan();
  for (int step = 0; step < 6; ++step) {
    ASSERT_TRUE(scheduler.can_plan());
    const StepPlan second = scheduler.plan();
    EXPECT_FALSE(scheduler.can_plan());
    EXPECT_THROW(scheduler.plan(), Error);
    EXPECT_EQ(rows_of(first) + rows_of(second), 5);
    EXPECT_LE(std::max(rows_of(first), rows_of(second)), 3);
    for (const RowRun& one : first.rows.runs) {
      for (const RowRun& other : second.rows.runs) EXPECT_NE(one.slot, other.slot);
    }
    EXPECT_EQ(second.finished, first.step - 1);
    EXPECT_THROW(finish(second), Error) << "they are finished in order";
    for (const WantedRow& row : finish(first)) scheduler.append(row.sequence, 1);
    first = second;
  }
}

TEST(Scheduler, ASequenceThatIsRemovedUnderWayLeavesWhenItsStepIsFinished) {
  Scheduler scheduler(KvMap::parse("none", 2), small_options(10));
  const SequenceId id = scheduler.add(prompt_of(4, 6));
  const StepPlan plan = scheduler.plan();
  scheduler.remove(id);
  EXPECT_EQ(scheduler.pages(0).held, 1);
  EXPECT_EQ(scheduler.finish(plan, {.settled = {4}, .residual = {}}).size(), 1u);
  EXPECT_EQ(scheduler.pages(0).held, 0);
  EXPECT_THROW(scheduler.status(id), Error);
}

TEST(Scheduler, StepsAndTokensComeInTheirOrder) {
  Scheduler scheduler(KvMap::parse("none", 2), small_options(10));
  EXPECT_TRUE(scheduler.plan().is_empty());
  const SequenceId id = scheduler.add(prompt_of(4, 6));
  EXPECT_THROW(scheduler.append(id, 1), Error);
  const StepPlan plan = scheduler.plan();
  EXPECT_THROW(scheduler.plan(), Error);
  EXPECT_THROW(scheduler.finish(plan, {}), Error);
  EXPECT_EQ(scheduler.finish(plan, {.settled = {4}, .residual = {}}).size(), 1u);
  EXPECT_THROW(scheduler.finish(plan, {.settled = {4}, .residual = {}}), Error);
  EXPECT_TRUE(scheduler.plan().is_empty());
  scheduler.append(id, 1);
  EXPECT_THROW(scheduler.append(id, 1), Error);
  scheduler.remove(id);
  EXPECT_THROW(scheduler.remove(id), Error);
  EXPECT_THROW(scheduler.status(id), Error);
}

}  // namespace
}  // namespace kvloom
