// A pipeline in which one message is lost, or two change places, ends soon with a message that names the edge: whatever
// the message, the map, the cut and the schedule.
#include "parallel/edge_messages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <chrono>
#include <cstdio>
#include <mutex>

#include "parallel/mesh_ranks.h"
#include "parallel/pipeline.h"
#include "parallel/thread_ranks.h"
#include "tests/support/faulty_communicator.h"
#include "tests/support/model_fixture.h"

namespace kvloom {
namespace {

using test::MessageFault;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kMicroBatches = 3;
constexpr std::chrono::milliseconds kPatience{500};

struct Line {
  ModelConfig config;
  PipelineOptions options;
  ChunkChain chain;
  Schedule schedule;

  Line(const std::string& map, const StageLayout& layout, SchedulePolicy policy)
      : config(ModelConfig::from_proto(test::small_model(8, map))),
        options({.passes = {.without_gradient = 1, .with_gradient = 2},
                 .layout = layout,
                 .policy = policy,
                 .sequences = 1,
                 .positions = 4,
                 .patience = {.limit = kPatience}}) {
    const IterationPlan plan = make_iteration_plan(config.kv_map, options.passes, PlanMode::kTrain, options.positions);
    chain = make_chunk_chain(plan, config.kv_map, layout);
    schedule = make_schedule(chain, kMicroBatches, policy, ScheduleCosts::by_layer_runs(chain, plan));
  }

  // Of one ordered pair of ranks, in order.
  std::vector<MessageKey> sent(int from, int to) const {
    std::vector<MessageKey> keys;
    for (const Instruction& step : schedule.ranks.at(static_cast<std::size_t>(from))) {
      if (step.action != Action::kSend) continue;
      const Edge& edge = chain.edges.at(static_cast<std::size_t>(step.index));
      if ((step.gradient ? edge.from_rank : edge.to_rank) == to) {
        keys.push_back({step.micro_batch, step.index, step.gradient});
      }
    }
    return keys;
  }

  // What the ranks come to when they train one step with the fault; "" when nothing is wrong.
  std::string train(const MessageFault& fault) const {
    try {
      run_thread_ranks(options.layout.ranks(), [&](Communicator& world) {
        omp_set_num_threads(1);
        test::FaultyCommunicator faulty(world, fault);
        CachingCpuAllocator allocator;
        Model model(config, pipeline_shard(options.layout, world.rank(), 0, 1), DType::kF32, allocator);
        model.initialize(1);
        ModelGradients gradients(model);
        Pipeline pipeline(model, faulty, nullptr, options);
        const std::vector<std::int32_t> tokens = {1, 2, 3, 4};
        const std::vector<TokenBatch> batches(kMicroBatches, make_token_batch(model, tokens, tokens, 1));
        pipeline.train(batches, 1, gradients);
        // As a trainer does after a step: a rank that has nothing left to do waits for the others.
        world.barrier();
      });
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
};

Line random_line(test::Random& random) {
  const std::vector<std::string> maps = {"sandwich-top:3", "sandwich-middle:3", "pizza-bottom:3",
                                         "lasagna-top:3",  "0_3_3_3_5_7_4_7",   test::random_map(random, 8, false)};
  const std::vector<StageLayout> layouts = {StageLayout::even(8, 2), StageLayout::even(8, 4),
                                            StageLayout::even(8, 2, 2), StageLayout(3, {0, 1, 4, 8})};
  return {maps[static_cast<std::size_t>(random.integer(0, std::ssize(maps) - 1))],
          layouts[static_cast<std::size_t>(random.integer(0, std::ssize(layouts) - 1))],
          random.flip() ? SchedulePolicy::kGPipe : SchedulePolicy::kOneForwardOneBackward};
}

// All messages of a kind, and who sends them.
std::vector<MessageKey> messages_of(const Line& line, EdgeTag tag) {
  std::vector<MessageKey> keys;
  for (const auto& list : line.schedule.ranks) {
    for (const Instruction& step : list) {
      if (step.action != Action::kSend) continue;
      const EdgeKind kind = line.chain.edges.at(static_cast<std::size_t>(step.index)).kind;
      if (tag_of(kind, step.gradient) == tag) keys.push_back({step.micro_batch, step.index, step.gradient});
    }
  }
  return keys;
}

class LostMessage : public ::testing::TestWithParam<EdgeTag> {};

TEST_P(LostMessage, IsNamedSoon) {
  test::Random random;
  for (int repeat = 0; repeat < 6; ++repeat) {
    const Line line = random_line(random);
    const std::vector<MessageKey> keys = messages_of(line, GetParam());
    if (keys.empty()) continue;
    const MessageKey lost = keys[static_cast<std::size_t>(random.integer(0, std::ssize(keys) - 1))];
    const auto start = std::chrono::steady_clock::now();
    const std::string message = line.train({lost});
    EXPECT_THAT(message, HasSubstr(describe(line.chain, lost)));
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
    if (repeat == 0) std::printf("%s\n", message.c_str());
  }
}

INSTANTIATE_TEST_SUITE_P(OfEveryKind, LostMessage,
                         ::testing::Values(EdgeTag::kKeyValue, EdgeTag::kKeyValueGradient, EdgeTag::kHidden,
                                           EdgeTag::kHiddenGradient));

TEST(LateMessage, IsWarnedOfOnceBeforePatienceEnds) {
  test::Random random;
  for (int repeat = 0; repeat < 2; ++repeat) {
    Line line = random_line(random);
    // The last of its pair of ranks: no other comes in its place.
    const MessageKey lost = line.sent(1, 0).back();
    std::mutex mutex;
    std::vector<std::string> warnings;
    line.options.patience = {.limit = 2 * kPatience, .warn_after = kPatience};
    line.options.patience.warn = [&](const std::string& warning) {
      const std::lock_guard lock(mutex);
      warnings.push_back(warning);
    };
    line.train({lost});
    // At most one of each rank: of those that are stuck.
    EXPECT_LE(std::ssize(warnings), line.chain.ranks);
    EXPECT_THAT(warnings, ::testing::Contains(AllOf(HasSubstr("waiting for the " + describe(line.chain, lost)),
                                                    HasSubstr("for 0.5 s now, for rank 1 to send it; fails at 1 s"))));
  }
}

TEST(SwappedMessages, AreNamedBoth) {
  test::Random random;
  int swaps = 0;
  while (swaps < 10) {
    const Line line = random_line(random);
    const auto from = static_cast<int>(random.integer(0, line.chain.ranks - 1));
    const auto to = static_cast<int>(random.integer(0, line.chain.ranks - 1));
    // Neighbours: of others the later might never be sent, as the sender waits for what the receiver makes of the
    // first.
    const std::vector<MessageKey> keys = line.sent(from, to);
    if (keys.size() < 2) continue;
    const auto at = static_cast<std::size_t>(random.integer(0, std::ssize(keys) - 2));
    const auto start = std::chrono::steady_clock::now();
    const MessageKey& other = keys[at + 1];
    const Edge& along = line.chain.edges.at(static_cast<std::size_t>(other.edge));
    const std::string message =
        line.train({keys[at], other, other.gradient ? along.gradient_tensors() : along.tensors()});
    EXPECT_THAT(message, HasSubstr(describe(line.chain, keys[at])));
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
    if (swaps++ == 0) std::printf("%s\n", message.c_str());
  }
}

TEST(Messages, ThatArriveAsSentFailNothing) {
  test::Random random;
  for (int repeat = 0; repeat < 6; ++repeat) {
    Line line = random_line(random);
    line.options.patience.limit = std::chrono::minutes(1);
    EXPECT_EQ(line.train({.message = {-1, -1, false}}), "");
  }
}

}  // namespace
}  // namespace kvloom
