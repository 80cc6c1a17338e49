// Schedules: whatever is made is proved by the checker, whatever is broken is refused by name, and the figures are
// those of the literature where there is one.
#include "parallel/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "kernels/error.h"
#include "tests/support/model_fixture.h"
#include "tests/support/schedule_player.h"

namespace kvloom {
namespace {

using test::Random;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr SchedulePolicy kPolicies[] = {SchedulePolicy::kGPipe, SchedulePolicy::kOneForwardOneBackward,
                                        SchedulePolicy::kForwardOnly};

struct Pipeline {
  IterationPlan plan;
  ChunkChain chain;
  ScheduleCosts costs;
};

Pipeline pipeline_of(const std::string& map, int layers, const StageLayout& layout, const Passes& passes = {}) {
  const KvMap parsed = KvMap::parse(map, layers, 8);
  Pipeline pipeline;
  pipeline.plan = make_iteration_plan(parsed, passes, PlanMode::kTrain);
  pipeline.chain = make_chunk_chain(pipeline.plan, parsed, layout);
  pipeline.costs = ScheduleCosts::by_layer_runs(pipeline.chain, pipeline.plan);
  return pipeline;
}

Schedule made(const Pipeline& pipeline, int micro_batches,
              SchedulePolicy policy = SchedulePolicy::kOneForwardOneBackward) {
  return make_schedule(pipeline.chain, micro_batches, policy, pipeline.costs);
}

ScheduleTimes timed(const Pipeline& pipeline, int micro_batches,
                    SchedulePolicy policy = SchedulePolicy::kOneForwardOneBackward) {
  const Schedule schedule = made(pipeline, micro_batches, policy);
  check_schedule(pipeline.chain, micro_batches, policy, schedule);
  return time_schedule(pipeline.chain, schedule, pipeline.costs);
}

StageLayout random_layout(Random& random, int layers, int most_ranks) {
  const auto ranks = static_cast<int>(random.integer(1, std::min(most_ranks, layers)));
  const int stages = ranks * static_cast<int>(random.integer(1, std::min(2, layers / ranks)));
  std::vector<int> cuts(static_cast<std::size_t>(layers) - 1);
  std::iota(cuts.begin(), cuts.end(), 1);
  std::ranges::shuffle(cuts, random.engine());
  std::vector<int> boundaries(cuts.begin(), cuts.begin() + stages - 1);
  boundaries.insert(boundaries.end(), {0, layers});
  std::ranges::sort(boundaries);
  return {ranks, boundaries};
}

std::string any_map(Random& random, int layers) {
  const auto one_of = [&](const std::vector<std::string>& names) {
    return names[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(names.size()) - 1))];
  };
  switch (random.integer(0, 4)) {
    case 0:
      return one_of({"none", "yoco"});
    case 1:
      return one_of({"cla:", "mlkv:", "yoco:", "fused-lite:"}) + std::to_string(random.integer(1, layers));
    case 2:
      return one_of({"lckv:", "last-shared:"}) + std::to_string(random.integer(0, layers - 1));
    case 3:
      return one_of(test::nine_maps()) + ":" + std::to_string(random.integer(1, layers));
    default:
      return test::random_map(random, layers, true);
  }
}

// Costs that no two chunks share, crossings among them.
ScheduleCosts random_costs(Random& random, const ChunkChain& chain) {
  ScheduleCosts costs;
  for (const Chunk& chunk : chain.chunks) {
    costs.forward.push_back(random.real(0, 3));
    costs.backward.push_back(chunk.keeps_gradient ? random.real(0, 6) : 0);
  }
  for (std::size_t i = 0; i < chain.edges.size(); ++i) {
    costs.crossing.push_back(random.real(0, 1));
    costs.gradient_crossing.push_back(random.real(0, 2));
  }
  return costs;
}

// By the checker, and by a player that shares nothing with it.
void expect_proved(const Pipeline& pipeline, int micro_batches, SchedulePolicy policy) {
  const Schedule schedule = made(pipeline, micro_batches, policy);
  ASSERT_NO_THROW(check_schedule(pipeline.chain, micro_batches, policy, schedule));
  const ScheduleTimes times = time_schedule(pipeline.chain, schedule, pipeline.costs);
  test::SchedulePlayer player(pipeline.chain, micro_batches, policy, pipeline.costs);
  test::SchedulePlayer::Played played;
  ASSERT_NO_THROW(played = player.play(schedule));
  EXPECT_NEAR(times.makespan, played.makespan, 1e-9 * (1 + played.makespan));
  EXPECT_EQ(times.peak_kept_chunks, played.kept);
  ASSERT_EQ(times.busy.size(), played.busy.size());
  for (std::size_t rank = 0; rank < played.busy.size(); ++rank) {
    EXPECT_NEAR(times.busy[rank], played.busy[rank], 1e-9 * (1 + played.busy[rank]));
  }
  EXPECT_GE(played.least_ahead, 2u) << "a receive is not posted ahead of its use";
}

TEST(Schedule, WhateverIsMadeIsProvedRight) {
  Random random;
  int schedules = 0;
  const auto prove = [&](const std::string& map, int layers, const StageLayout& layout) {
    SCOPED_TRACE(map + " over " + std::to_string(layout.ranks()) + " ranks");
    const Passes passes{static_cast<int>(random.integer(0, 7)), static_cast<int>(random.integer(1, 2))};
    Pipeline pipeline = pipeline_of(map, layers, layout, passes);
    if (random.flip()) pipeline.costs = random_costs(random, pipeline.chain);
    for (const SchedulePolicy policy : kPolicies) {
      expect_proved(pipeline, static_cast<int>(random.integer(1, 32)), policy);
      ++schedules;
    }
  };
  for (const std::string& name : test::nine_maps()) {
    for (int ranks = 1; ranks <= 8; ++ranks) {
      const auto layers = static_cast<int>(random.integer(ranks, 24));
      prove(name + ":" + std::to_string(random.integer(1, layers)), layers, StageLayout::even(layers, ranks));
    }
  }
  for (int i = 0; i < 250 && !HasFailure(); ++i) {
    const auto layers = static_cast<int>(random.integer(1, 24));
    prove(any_map(random, layers), layers, random_layout(random, layers, 8));
  }
  std::printf("%d schedules made and proved\n", schedules);
}

TEST(Schedule, TheLargestIsMadeAndProved) {
  for (const std::string map : {"sandwich-top:3", "lasagna-top:5", "lckv:3"}) {
    const Pipeline pipeline = pipeline_of(map, 24, StageLayout::even(24, 8));
    for (const SchedulePolicy policy : kPolicies) expect_proved(pipeline, 32, policy);
  }
}

TEST(Schedule, WithoutSharingTheBubbleIsThatOfTheLiterature) {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    const Pipeline pipeline = pipeline_of("none", 2 * ranks, StageLayout::even(2 * ranks, ranks));
    for (const int micro_batches : {1, 2, 3, 4, 7, 8, 16, 32}) {
      for (const SchedulePolicy policy : kPolicies) {
        EXPECT_NEAR(timed(pipeline, micro_batches, policy).idle_share(), (ranks - 1.0) / (micro_batches + ranks - 1.0),
                    1e-12);
      }
    }
  }
}

TEST(Schedule, OneForwardOneBackwardKeepsWhatThePipelineNeedsAndGPipeKeepsAll) {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    const Pipeline pipeline = pipeline_of("none", 2 * ranks, StageLayout::even(2 * ranks, ranks));
    for (const int micro_batches : {1, 3, 8, 32}) {
      const ScheduleTimes times = timed(pipeline, micro_batches);
      const ScheduleTimes gpipe = timed(pipeline, micro_batches, SchedulePolicy::kGPipe);
      const ScheduleTimes forward_only = timed(pipeline, micro_batches, SchedulePolicy::kForwardOnly);
      for (int rank = 0; rank < ranks; ++rank) {
        const auto r = static_cast<std::size_t>(rank);
        EXPECT_EQ(times.peak_kept_chunks[r], std::min(micro_batches, ranks - rank));
        EXPECT_EQ(gpipe.peak_kept_chunks[r], micro_batches);
        EXPECT_EQ(forward_only.peak_kept_chunks[r], 0);
      }
    }
  }
}

TEST(Schedule, OneRankKeepsOneMicroBatchAndNeverWaits) {
  for (const std::string map : {"none", "sandwich-top:3", "lasagna-top:4"}) {
    const Pipeline pipeline = pipeline_of(map, 8, StageLayout::even(8, 1));
    const auto kept = std::ranges::count_if(pipeline.chain.chunks, &Chunk::keeps_gradient);
    const ScheduleTimes times = timed(pipeline, 5);
    EXPECT_EQ(times.peak_kept_chunks, std::vector<int>{static_cast<int>(kept)});
    EXPECT_EQ(times.idle_share(), 0);
  }
}

TEST(Schedule, TwoStagesARankShortenTheBubble) {
  const Pipeline plain = pipeline_of("none", 16, StageLayout::even(16, 4, 1));
  const Pipeline interleaved = pipeline_of("none", 16, StageLayout::even(16, 4, 2));
  for (const int micro_batches : {8, 16, 32}) {
    EXPECT_LT(timed(interleaved, micro_batches).idle_share(), 0.9 * timed(plain, micro_batches).idle_share());
  }
}

// Every pass run to its end by all micro-batches before the next one starts: a flow shop of equal jobs takes one job's
// way and the slowest chunk for each of the others.
double time_drained_at_each_pass(const Pipeline& pipeline, int micro_batches) {
  double time = 0;
  for (std::size_t step = 0; step < pipeline.plan.steps.size(); ++step) {
    for (const std::vector<double>* costs : {&pipeline.costs.forward, &pipeline.costs.backward}) {
      double way = 0;
      double slowest = 0;
      for (std::size_t chunk = 0; chunk < pipeline.chain.chunks.size(); ++chunk) {
        if (pipeline.chain.chunks[chunk].step != step) continue;
        way += (*costs)[chunk];
        slowest = std::max(slowest, (*costs)[chunk]);
      }
      time += way + (micro_batches - 1) * slowest;
    }
  }
  return time;
}

TEST(Schedule, PassesThatCirculateKeepFourStagesBusy) {
  const StageLayout balanced(4, {0, 6, 11, 16, 22});
  const Pipeline pipeline = pipeline_of("sandwich-top:3", 22, balanced);
  const ScheduleTimes times = timed(pipeline, 16);
  const double work = std::accumulate(times.busy.begin(), times.busy.end(), 0.0);
  const double drained = time_drained_at_each_pass(pipeline, 16);
  std::printf(
      "sandwich-top:3, 4 stages, 16 micro-batches: idle %.2f%%; drained at each pass: idle %.2f%%, %.3f times\n",
      100 * times.idle_share(), 100 * (1 - work / (4 * drained)), drained / times.makespan);
  EXPECT_LT(times.idle_share(), 0.12);
  EXPECT_GT(drained, 1.1 * times.makespan);
  const ScheduleTimes even = timed(pipeline_of("sandwich-top:3", 22, StageLayout::even(22, 4)), 16);
  std::printf("the same, even boundaries: idle %.2f%%\n", 100 * even.idle_share());
  EXPECT_LT(even.idle_share(), 0.25);
  // More than GPipe's time for less than its memory.
  const ScheduleTimes gpipe = timed(pipeline, 16, SchedulePolicy::kGPipe);
  EXPECT_LE(times.makespan, gpipe.makespan);
  for (std::size_t rank = 0; rank < 4; ++rank) EXPECT_LT(times.peak_kept_chunks[rank], gpipe.peak_kept_chunks[rank]);
}

TEST(Schedule, PassesWithoutGradientKeepNothing) {
  const Pipeline pipeline = pipeline_of("sandwich-top:3", 12, StageLayout::even(12, 4), {50, 1});
  for (const int kept : timed(pipeline, 16).peak_kept_chunks) EXPECT_LE(kept, 2 * 16);
}

TEST(Schedule, ASlowLinkIsPaidForOnceAReceiveIsPosted) {
  Pipeline pipeline = pipeline_of("none", 2, StageLayout::even(2, 2));
  pipeline.costs.crossing = {10};
  pipeline.costs.gradient_crossing = {20};
  // Forward 1, crossing 10, forward 1, backward 2, crossing 20, backward 2.
  EXPECT_EQ(timed(pipeline, 1).makespan, 36);
}

// --- What is broken is refused -------------------------------------------------------------------------------------

class BrokenSchedule : public ::testing::Test {
 protected:
  static constexpr int kMicroBatches = 3;

  // Layers 0 1 | 2 3 | 4 5; layer 4 is read from below and by 5.
  BrokenSchedule() : pipeline_(pipeline_of("0_4_4_4_4_5", 6, StageLayout::even(6, 3), {1, 2})) {
    schedule_ = made(pipeline_, kMicroBatches);
  }

  using List = std::vector<Instruction>;

  List& list(int rank) { return schedule_.ranks[static_cast<std::size_t>(rank)]; }
  const Edge& edge(int index) const { return pipeline_.chain.edges[static_cast<std::size_t>(index)]; }

  List::iterator find(int rank, const Instruction& instruction) {
    const auto found = std::ranges::find(list(rank), instruction);
    EXPECT_NE(found, list(rank).end()) << describe(pipeline_.chain, instruction);
    return found;
  }

  // The last edge of a kind, one that returns a gradient.
  int last_edge(EdgeKind kind) const {
    int found = -1;
    for (std::size_t i = 0; i < pipeline_.chain.edges.size(); ++i) {
      if (pipeline_.chain.edges[i].kind == kind && pipeline_.chain.edges[i].returns_gradient)
        found = static_cast<int>(i);
    }
    EXPECT_GE(found, 0);
    return found;
  }

  std::string refusal() const {
    try {
      check_schedule(pipeline_.chain, kMicroBatches, SchedulePolicy::kOneForwardOneBackward, schedule_);
    } catch (const InputError&) {
      ADD_FAILURE() << "a broken schedule is not the user's mistake";
    } catch (const Error& error) {
      return error.what();
    }
    ADD_FAILURE() << "not refused";
    return "";
  }

  Pipeline pipeline_;
  Schedule schedule_;
};

TEST_F(BrokenSchedule, IsRightBeforeItIsBroken) {
  EXPECT_NO_THROW(check_schedule(pipeline_.chain, kMicroBatches, SchedulePolicy::kOneForwardOneBackward, schedule_));
}

TEST_F(BrokenSchedule, DroppedMessagesAreNamed) {
  const Schedule whole = schedule_;
  for (const EdgeKind kind : {EdgeKind::kHidden, EdgeKind::kKeyValue}) {
    const int index = last_edge(kind);
    for (const bool gradient : {false, true}) {
      for (const Action action : {Action::kSend, Action::kReceive}) {
        schedule_ = whole;
        const Instruction dropped{action, 1, index, gradient};
        const bool from_side = (action == Action::kSend) != gradient;
        const int rank = from_side ? edge(index).from_rank : edge(index).to_rank;
        list(rank).erase(find(rank, dropped));
        EXPECT_THAT(refusal(), AllOf(HasSubstr("rank " + std::to_string(rank) + ", "),
                                     HasSubstr(describe(pipeline_.chain, dropped)), HasSubstr("missing")));
      }
    }
  }
}

TEST_F(BrokenSchedule, AKeyValueEdgeDroppedOnBothSidesIsNamed) {
  const int index = last_edge(EdgeKind::kKeyValue);
  for (const bool gradient : {false, true}) {
    for (auto& one : schedule_.ranks) {
      std::erase_if(one, [&](const Instruction& instruction) {
        return instruction.index == index && instruction.gradient == gradient &&
               (instruction.action == Action::kSend || instruction.action == Action::kReceive);
      });
    }
    EXPECT_THAT(refusal(), AllOf(HasSubstr(describe(edge(index))), HasSubstr("missing")));
    schedule_ = made(pipeline_, kMicroBatches);
  }
}

TEST_F(BrokenSchedule, SwappedMessagesAreNamed) {
  // Two sends of rank 2 to rank 0: the gradient does not matter, the order does.
  std::vector<std::size_t> sends;
  for (std::size_t i = 0; i < list(2).size(); ++i) {
    const Instruction& one = list(2)[i];
    if (one.action == Action::kSend && !one.gradient && edge(one.index).to_rank == 0) sends.push_back(i);
  }
  ASSERT_GE(sends.size(), 2);
  // The earlier goes to where the later stands, so that neither precedes what it sends.
  const Instruction first = list(2)[sends[0]];
  const Instruction second = list(2)[sends[1]];
  list(2).insert(list(2).begin() + static_cast<std::ptrdiff_t>(sends[1]) + 1, first);
  list(2).erase(list(2).begin() + static_cast<std::ptrdiff_t>(sends[0]));
  EXPECT_THAT(refusal(),
              AllOf(HasSubstr("rank 0, receive of K/V of layer 4"),
                    HasSubstr("message 0 that rank 2 sends it is the " + describe(pipeline_.chain, second))));
}

TEST_F(BrokenSchedule, AChunkBeforeItsInputIsNamed) {
  const int index = last_edge(EdgeKind::kHidden);
  const int reader = edge(index).readers.front();
  const int rank = edge(index).to_rank;
  const Instruction forward{Action::kForward, 0, reader};
  const auto place = find(rank, {Action::kReceive, 0, index});
  list(rank).erase(find(rank, forward));
  list(rank).insert(place, forward);
  EXPECT_THAT(refusal(), AllOf(HasSubstr(describe(pipeline_.chain, forward)), HasSubstr("it comes before the"),
                               HasSubstr(describe(edge(index)))));
}

TEST_F(BrokenSchedule, AMissingARepeatedAndAForeignChunkAreNamed) {
  const Schedule whole = schedule_;
  const Instruction backward{Action::kBackward, 2, static_cast<int>(pipeline_.chain.chunks.size()) - 1};
  list(2).erase(find(2, backward));
  EXPECT_THAT(refusal(), AllOf(HasSubstr(describe(pipeline_.chain, backward)), HasSubstr("missing")));
  schedule_ = whole;
  list(2).push_back(backward);
  EXPECT_THAT(refusal(), AllOf(HasSubstr(describe(pipeline_.chain, backward)), HasSubstr("second time")));
  schedule_ = whole;
  list(1).push_back(backward);
  EXPECT_THAT(refusal(), AllOf(HasSubstr(describe(pipeline_.chain, backward)), HasSubstr("that is rank 2's")));
  schedule_ = whole;
  list(1).push_back({Action::kForward, 0, 999});
  EXPECT_THAT(refusal(), HasSubstr("there is no such thing"));
  schedule_ = whole;
  schedule_.ranks.pop_back();
  EXPECT_THAT(refusal(), HasSubstr("2 ranks; the pipeline has 3"));
}

TEST_F(BrokenSchedule, ABackwardBeforeALaterChunkOfItsRankIsRefused) {
  std::vector<Instruction> backwards;
  for (const Instruction& one : list(1)) {
    if (one.action == Action::kBackward && one.micro_batch == 0) backwards.push_back(one);
  }
  ASSERT_EQ(backwards.size(), 2);
  std::iter_swap(find(1, backwards[0]), find(1, backwards[1]));
  EXPECT_THAT(refusal(), HasSubstr("it comes before the"));
}

// Both ranks run micro-batch 1's chunk of the next pass first, each before the other's of this one.
TEST_F(BrokenSchedule, ADeadLockIsNamed) {
  Pipeline pipeline = pipeline_of("none", 2, StageLayout::even(2, 2));
  // Rank 0 turns micro-batch 0 back before it runs micro-batch 1 forward, rank 1 wants both forward first.
  const Schedule stuck{{{{Action::kForward, 0, 0},
                         {Action::kSend, 0, 0},
                         {Action::kReceive, 0, 0, true},
                         {Action::kBackward, 0, 0},
                         {Action::kForward, 1, 0},
                         {Action::kSend, 1, 0},
                         {Action::kReceive, 1, 0, true},
                         {Action::kBackward, 1, 0}},
                        {{Action::kReceive, 0, 0},
                         {Action::kReceive, 1, 0},
                         {Action::kForward, 0, 1},
                         {Action::kForward, 1, 1},
                         {Action::kBackward, 0, 1},
                         {Action::kSend, 0, 0, true},
                         {Action::kBackward, 1, 1},
                         {Action::kSend, 1, 0, true}}}};
  try {
    check_schedule(pipeline.chain, 2, SchedulePolicy::kOneForwardOneBackward, stuck);
    FAIL() << "not refused";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("dead-lock"), HasSubstr("hidden states of chunk 0, from rank 0 to rank 1")));
  }
  EXPECT_THROW(time_schedule(pipeline.chain, stuck, pipeline.costs), Error);
}

TEST(Schedule, FewerThanOneMicroBatchIsTheUsersMistake) {
  const Pipeline pipeline = pipeline_of("none", 2, StageLayout::even(2, 2));
  EXPECT_THROW(made(pipeline, 0), InputError);
}

}  // namespace
}  // namespace kvloom
