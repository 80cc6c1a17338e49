// How prompts are cut into runs: examples worked out by hand from DESIGN 5.
#include "infer/engine/prefill_progress.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/error.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

using test::Random;

constexpr std::int64_t kNever = 1'000'000;

PrefillRules rules_of(const std::string& map, int layers) {
  PrefillRules rules(KvMap::parse(map, layers));
  rules.grid = 8;
  rules.window = 3;
  rules.max_chunk = 4;
  return rules;
}

// "layers:first+rows", with a wavefront's "(entering, forced)".
std::string text_of(const RowRun& run) {
  std::string text = std::to_string(run.layers.first) + "-" + std::to_string(run.layers.end - 1) + ":" +
                     std::to_string(run.first_position) + "+" + std::to_string(run.rows);
  if (run.kind == RowKind::kWavefront) {
    text += "(" + std::to_string(run.entering) + "," + std::to_string(run.forced) + ")";
  }
  return text;
}

// All runs of a prompt, where of every pass so many rows settle.
std::vector<std::string> runs_of(const PrefillRules& rules, std::int64_t prompt, std::int32_t settled,
                                 std::int64_t wanted_from = kNever) {
  std::vector<std::string> runs;
  PrefillProgress progress(rules, prompt);
  for (progress.begin(0); progress.computed() < prompt;) {
    const RowRun run = progress.next(wanted_from);
    runs.push_back(text_of(run));
    EXPECT_EQ(run.block_first, progress.computed());
    progress.finish(run, std::min(settled, run.rows), wanted_from);
  }
  return runs;
}

TEST(PrefillProgress, AMapWithoutUpwardReadsIsAChainOfChunks) {
  EXPECT_EQ(runs_of(rules_of("none", 3), 10, 0), (std::vector<std::string>{"0-2:0+4", "0-2:4+4", "0-2:8+2"}));
}

TEST(PrefillProgress, WindowsSlideOverWhatSettledAndStayInTheirBlock) {
  // 0_4_4_4_4_5: layer 0, the iterated segment 1 to 4, layer 5.
  EXPECT_EQ(runs_of(rules_of("sandwich-top:3", 6), 10, 2),
            (std::vector<std::string>{"0-0:0+4", "0-0:4+4",                                            //
                                      "1-4:0+3(3,1)", "1-4:2+3(2,1)", "1-4:4+3(2,1)", "1-4:6+2(1,1)",  //
                                      "5-5:0+4", "5-5:4+4",                                            //
                                      "0-0:8+2", "1-4:8+2(2,1)", "5-5:8+2"}));
}

TEST(PrefillProgress, TheFirstRowSettlesInEveryPass) {
  const std::vector<std::string> runs = runs_of(rules_of("pizza-top:1", 4), 6, 0);
  EXPECT_EQ(runs, (std::vector<std::string>{"0-3:0+3(3,1)", "0-3:1+3(1,1)", "0-3:2+3(1,1)", "0-3:3+3(1,1)",
                                            "0-3:4+2(0,1)", "0-3:5+1(0,1)"}));
}

TEST(PrefillProgress, RowsInTheirLastPassAreForced) {
  PrefillRules rules = rules_of("pizza-top:1", 4);
  rules.passes = 2;
  EXPECT_EQ(runs_of(rules, 6, 0),
            (std::vector<std::string>{"0-3:0+3(3,1)", "0-3:1+3(1,2)", "0-3:3+3(2,1)", "0-3:4+2(0,2)"}));
  rules.passes = 3;
  rules.window = 4;
  EXPECT_EQ(runs_of(rules, 6, 0),
            (std::vector<std::string>{"0-3:0+4(4,1)", "0-3:1+4(1,1)", "0-3:2+4(1,2)", "0-3:4+2(0,1)", "0-3:5+1(0,1)"}));
  rules.passes = 1;
  rules.window = 3;
  EXPECT_EQ(runs_of(rules, 6, 0), (std::vector<std::string>{"0-3:0+3(3,3)", "0-3:3+3(3,3)"}));
}

TEST(PrefillProgress, OnlyATokenThatTheCapSettledMakesItCapped) {
  PrefillRules rules = rules_of("pizza-top:1", 4);
  rules.passes = 1;
  for (const std::int32_t settled : {2, 3}) {
    PrefillProgress progress(rules, 3);
    progress.begin(0);
    EXPECT_EQ(progress.finish(progress.next(kNever), settled, kNever), 3);
    EXPECT_EQ(progress.was_capped(), settled < 3);
  }
}

TEST(PrefillProgress, SegmentsAboveTheLastSourceRunForWantedRowsAlone) {
  // The iterated segment 0 to 2; layers 3 and 4 read layer 2.
  EXPECT_EQ(runs_of(rules_of("2_2_2_2_2", 5), 10, 3, 9),
            (std::vector<std::string>{"0-2:0+3(3,1)", "0-2:3+3(3,1)", "0-2:6+2(2,1)", "0-2:8+2(2,1)", "3-4:9+1"}));
  EXPECT_EQ(runs_of(rules_of("2_2_2_2_2", 5), 3, 3, 0), (std::vector<std::string>{"0-2:0+3(3,1)", "3-4:0+3"}));
}

TEST(PrefillProgress, PassesAreCountedOverFinalBlocksOnce) {
  const PrefillRules rules = rules_of("pizza-top:1", 4);
  PrefillProgress progress(rules, 10);
  for (int time = 0; time < 2; ++time) {
    progress.begin(0);
    EXPECT_EQ(progress.passes_per_token(), time == 0 ? 1 : 21.0 / 8);
    while (progress.computed() < 8) progress.finish(progress.next(kNever), 0, kNever);
    EXPECT_EQ(progress.passes_per_token(), 21.0 / 8);
  }
  while (progress.computed() < 10) progress.finish(progress.next(kNever), 0, kNever);
  EXPECT_EQ(progress.passes_per_token(), 24.0 / 10);
}

TEST(PrefillProgress, ABlockBegunAnewStartsFromNothing) {
  const PrefillRules rules = rules_of("sandwich-top:3", 6);
  PrefillProgress progress(rules, 10);
  progress.begin(0);
  for (int pass = 0; pass < 4; ++pass) progress.finish(progress.next(kNever), 1, kNever);
  EXPECT_EQ(text_of(progress.next(kNever)), "1-4:2+3(1,1)");
  progress.begin(0);
  for (int chunk = 0; chunk < 2; ++chunk) progress.finish(progress.next(kNever), 0, kNever);
  EXPECT_EQ(text_of(progress.next(kNever)), "1-4:0+3(3,1)");
}

TEST(PrefillProgress, MoreSettledRowsThanThereAreIsAnError) {
  const PrefillRules rules = rules_of("pizza-top:1", 4);
  PrefillProgress progress(rules, 6);
  progress.begin(0);
  EXPECT_THROW(progress.finish(progress.next(kNever), 4, kNever), Error);
  EXPECT_THROW(progress.finish(progress.next(kNever), -1, kNever), Error);
}

TEST(PrefillRules, RowsWithinABudgetAreTheMostThatCostNoMore) {
  Random random;
  for (int count = 0; count < 2000; ++count) {
    const PrefillRules rules = rules_of(random.flip() ? "pizza-bottom:3" : "0_2_2_2_2_2_2", 7);
    RowRun run{.layers = {static_cast<int>(random.integer(0, 6)), 7}, .first_position = random.integer(0, 20)};
    run.rows = static_cast<std::int32_t>(random.integer(1, 20));
    run.wanted_from = random.integer(run.layers.first >= rules.kv_end ? 0 : run.first_position, 45);
    if (run.layers.first >= rules.kv_end) run.wanted_from = std::min(run.wanted_from, run.first_position);
    const std::int64_t budget = random.integer(-3, 150);
    std::int32_t most = 0;
    RowRun part = run;
    for (part.rows = 1; part.rows <= run.rows; ++part.rows) {
      std::int64_t cost = 0;
      for (std::int64_t p = run.first_position; p < part.end_position(); ++p) {
        cost += (p >= run.wanted_from ? 7 : std::min(7, rules.kv_end)) - run.layers.first;
      }
      ASSERT_EQ(rules.cost(part), cost);
      if (cost <= budget) most = part.rows;
    }
    ASSERT_EQ(rules.rows_within(run, budget), most);
  }
}

}  // namespace
}  // namespace kvloom
