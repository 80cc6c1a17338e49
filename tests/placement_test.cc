// Predicted costs against what ranks really send and what plans really count, and placements against every other cut.
#include "parallel/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <numeric>

#include <fmt/ranges.h>

#include "core/model.h"
#include "kernels/error.h"
#include "parallel/mesh_ranks.h"
#include "parallel/pipeline.h"
#include "parallel/thread_ranks.h"
#include "tests/support/model_fixture.h"

namespace kvloom {
namespace {

using test::Random;

constexpr Speeds kFast{.flops_per_second = 1e12, .link_bytes_per_second = 1e10};

// Of Llama's proportions, so that costs are not those of a toy.
StepShape shape_of(const std::string& map, int layers, int micro_batches = 16) {
  proto::ModelConfig message = test::small_model(layers, map, 64);
  message.set_hidden(512);
  message.set_ffn(1376);
  message.set_heads(8);
  message.set_kv_heads(4);
  message.set_vocab(8192);
  message.set_context(256);
  return {.model = ModelConfig::from_proto(message), .passes = {}, .micro_batches = micro_batches, .sequences = 2};
}

StageLayout random_layout(Random& random, int layers, int ranks, int stages_per_rank) {
  std::vector<int> cuts(static_cast<std::size_t>(layers) - 1);
  std::iota(cuts.begin(), cuts.end(), 1);
  std::ranges::shuffle(cuts, random.engine());
  std::vector<int> boundaries(cuts.begin(), cuts.begin() + ranks * stages_per_rank - 1);
  boundaries.insert(boundaries.end(), {0, layers});
  std::ranges::sort(boundaries);
  return {ranks, boundaries};
}

TEST(StepCost, ChunksCostWhatThePlanCosts) {
  Random random;
  for (int i = 0; i < 20; ++i) {
    StepShape shape = shape_of(test::random_map(random, 8, true), 8);
    shape.passes = {static_cast<int>(random.integer(0, 3)), static_cast<int>(random.integer(1, 2))};
    const StepCounter counter(shape);
    const auto sequences = static_cast<double>(shape.sequences);
    const Flops plan = plan_flops(shape.model, counter.plan(), shape.model.context);
    const double head = sequences * head_flops(shape.model, shape.model.context, PlanMode::kTrain).total();
    const double embedding = sequences * static_cast<double>(shape.model.context * shape.model.hidden);
    const StageLayout layout = random_layout(random, 8, static_cast<int>(random.integer(1, 4)), 2);
    const ChainCosts costs = counter.count(make_chunk_chain(counter.plan(), shape.model.kv_map, layout));
    Flops sum;
    for (const Flops& one : costs.flops) {
      sum.forward += one.forward;
      sum.backward += one.backward;
    }
    EXPECT_NEAR(sum.forward, sequences * plan.forward + embedding, 1e-9 * sum.forward);
    EXPECT_NEAR(sum.backward, sequences * plan.backward + head + embedding, 1e-9 * sum.backward);
  }
}

TEST(StepCost, RecomputeAddsTheForwardOfRunsThatKeepGradientAndKeepsLess) {
  StepShape shape = shape_of("sandwich-top:3", 8);
  const StepCounter plain(shape);
  shape.recompute = Recompute::kFull;
  const StepCounter again(shape);
  for (std::size_t step = 0; step < plain.plan().steps.size(); ++step) {
    for (std::size_t run = 0; run < plain.plan().steps[step].layers.size(); ++run) {
      const Flops& one = plain.flops(step, run);
      const double more = plain.plan().steps[step].keeps_gradient ? one.forward : 0;
      EXPECT_DOUBLE_EQ(again.flops(step, run).backward, one.backward + more);
      EXPECT_DOUBLE_EQ(again.flops(step, run).forward, one.forward);
      EXPECT_LT(again.kept_bytes(plain.plan().steps[step].layers[run]),
                plain.kept_bytes(plain.plan().steps[step].layers[run]));
    }
  }
}

TEST(StepCost, TensorRanksShareOperationsAndKeyValueHeads) {
  StepShape shape = shape_of("sandwich-top:3", 8);
  const StepCounter whole(shape);
  for (const int ranks : {2, 4, 8}) {
    shape.tensor_ranks = ranks;
    const StepCounter part(shape);
    const std::int64_t kv_ranks = std::min<std::int64_t>(ranks, shape.model.kv_heads);
    EXPECT_EQ(part.part_bytes(DType::kF32) * kv_ranks, whole.part_bytes(DType::kF32));
    EXPECT_EQ(part.hidden_bytes(), whole.hidden_bytes());
    if (ranks > kv_ranks) continue;
    EXPECT_DOUBLE_EQ(part.flops(1, 0).total() * ranks, whole.flops(1, 0).total());
  }
  shape.tensor_ranks = 3;
  EXPECT_THROW(StepCounter{shape}, InputError);
}

TEST(StepCost, WeightsOfAllRanksAreTheModel) {
  const StepShape shape = shape_of("lasagna-top:4", 8);
  const StepCounter counter(shape);
  const StageLayout layout(2, {0, 1, 3, 6, 8});
  EXPECT_EQ(counter.weight_bytes(layout, 0) + counter.weight_bytes(layout, 1),
            16 * ParameterLayout(shape.model, ModelShard::whole(shape.model)).count());
}

// Bytes that each rank has given to each kind of message in a step.
using Sent = std::vector<LinkBytes>;

Sent measure(const StepShape& shape, const Mesh& mesh, const StageLayout& layout) {
  Sent sent(static_cast<std::size_t>(layout.ranks()));
  run_thread_ranks(mesh.size(), [&](Communicator& world) {
    MeshRanks ranks(world, mesh);
    CachingCpuAllocator allocator;
    TensorRanks tensor(ranks.tensor(), shape.sequence_parallel, allocator);
    Model model(shape.model, pipeline_shard(layout, ranks.place().pipeline, ranks.place().tensor, mesh.tensor),
                shape.dtype, allocator);
    model.initialize(1);
    ModelGradients gradients(model);
    Pipeline pipeline(model, ranks.pipeline(), mesh.tensor > 1 ? &tensor : nullptr,
                      {.passes = shape.passes,
                       .layout = layout,
                       .policy = shape.policy,
                       .sequences = shape.sequences,
                       .positions = shape.model.context});
    const std::vector<std::int32_t> tokens(static_cast<std::size_t>(shape.sequences * shape.model.context), 1);
    std::vector<TokenBatch> batches;
    for (int i = 0; i < shape.micro_batches; ++i) {
      batches.push_back(make_token_batch(model, tokens, tokens, shape.sequences));
    }
    pipeline.train(batches, 1, gradients);
    if (ranks.place().tensor != 0) return;
    const auto bytes = [&](EdgeTag tag) {
      return static_cast<std::int64_t>(ranks.pipeline().sent_bytes(static_cast<int>(tag)));
    };
    sent[static_cast<std::size_t>(ranks.place().pipeline)] = {.hidden = bytes(EdgeTag::kHidden),
                                                              .hidden_gradient = bytes(EdgeTag::kHiddenGradient),
                                                              .key_value = bytes(EdgeTag::kKeyValue),
                                                              .key_value_gradient = bytes(EdgeTag::kKeyValueGradient),
                                                              .messages = bytes(EdgeTag::kKey) / kMessageKeyBytes};
  });
  return sent;
}

TEST(StepCost, RanksSendTheBytesThatArePredicted) {
  Random random;
  for (int i = 0; i < 24 && !HasFailure(); ++i) {
    const std::string map =
        i < 9 ? test::nine_maps()[static_cast<std::size_t>(i)] + ":3" : test::random_map(random, 6, true);
    const Mesh mesh{.data = 1,
                    .pipeline = static_cast<int>(random.integer(2, 3)),
                    .tensor = static_cast<int>(random.integer(1, 2)) * (i % 5 == 4 ? 2 : 1)};
    const StageLayout layout = random_layout(random, 6, mesh.pipeline, static_cast<int>(random.integer(1, 2)));
    proto::ModelConfig message = test::small_model(6, map, 5);
    message.set_context(8);
    message.set_vocab(32);
    const StepShape shape{
        .model = ModelConfig::from_proto(message),
        .passes = {1, 2},
        .micro_batches = static_cast<int>(random.integer(1, 4)),
        .sequences = 2,
        .dtype = random.flip() ? DType::kF32 : DType::kBF16,
        .tensor_ranks = mesh.tensor,
        .sequence_parallel = mesh.tensor > 1 && random.flip() ? SequenceParallel::kYes : SequenceParallel::kNo,
        .policy = random.flip() ? SchedulePolicy::kGPipe : SchedulePolicy::kOneForwardOneBackward};
    SCOPED_TRACE(fmt::format("map {} pp {} tp {}", map, mesh.pipeline, mesh.tensor));
    const StepCounter counter(shape);
    const ChunkChain chain = make_chunk_chain(counter.plan(), shape.model.kv_map, layout);
    const ChainCosts costs = counter.count(chain);
    const Sent sent = measure(shape, mesh, layout);
    for (int from = 0; from < mesh.pipeline; ++from) {
      LinkBytes predicted;
      for (int to = 0; to < mesh.pipeline; ++to) {
        const LinkBytes link = link_bytes(chain, costs, from, to);
        predicted.hidden += shape.micro_batches * link.hidden;
        predicted.hidden_gradient += shape.micro_batches * link.hidden_gradient;
        predicted.key_value += shape.micro_batches * link.key_value;
        predicted.key_value_gradient += shape.micro_batches * link.key_value_gradient;
        predicted.messages += shape.micro_batches * link.messages;
      }
      EXPECT_EQ(sent[static_cast<std::size_t>(from)], predicted) << "rank " << from;
    }
  }
}

TEST(Placement, IsNeverPredictedSlowerThanEven) {
  Random random;
  int cases = 0;
  const auto compare = [&](const std::string& map, int layers) {
    const auto ranks = static_cast<int>(random.integer(2, std::min(6, layers)));
    const auto per_rank = static_cast<int>(random.integer(1, std::min(2, layers / ranks)));
    const StepCounter counter(shape_of(map, layers, static_cast<int>(random.integer(1, 16))));
    const Speeds speeds{1e12, random.flip() ? 0 : random.real(1e8, 1e11)};
    const PredictedStep even = predict_step(counter, StageLayout::even(layers, ranks, per_rank), speeds);
    const PredictedStep placed = place_stages(counter, speeds, {.ranks = ranks, .stages_per_rank = per_rank});
    EXPECT_LE(placed.times.makespan, even.times.makespan) << map;
    EXPECT_EQ(placed.layout.stages(), ranks * per_rank);
    check_schedule(placed.chain, counter.shape().micro_batches, counter.shape().policy, placed.schedule);
    ++cases;
  };
  for (const std::string& name : test::nine_maps()) compare(name + ":3", static_cast<int>(random.integer(4, 12)));
  for (int i = 0; i < 12; ++i) {
    const auto layers = static_cast<int>(random.integer(2, 12));
    compare(test::random_map(random, layers, true), layers);
  }
  std::printf("%d placements\n", cases);
}

TEST(Placement, IsFasterWhereStagesCostDifferently) {
  for (const std::string map : {"sandwich-top:3", "pizza-bottom:3", "sandwich-middle:3"}) {
    const StepCounter counter(shape_of(map, 22));
    const PredictedStep even = predict_step(counter, StageLayout::even(22, 4), kFast);
    const PredictedStep placed = place_stages(counter, kFast, {.ranks = 4});
    std::printf("%s, 4 stages: boundaries %s, even / auto = %.3f, idle %.1f%% (even %.1f%%)\n", map.c_str(),
                fmt::format("{}", fmt::join(placed.layout.boundaries(), ",")).c_str(),
                even.times.makespan / placed.times.makespan, 100 * placed.times.idle_share(),
                100 * even.times.idle_share());
    EXPECT_GT(even.times.makespan, 1.02 * placed.times.makespan) << map;
  }
}

// The best makespan of all cuts of the layers into `ranks` stages that start with the boundaries `begun`.
double best_of_all_cuts(const StepCounter& counter, int ranks, std::vector<int> begun = {0}) {
  const auto layers = static_cast<int>(counter.shape().model.layers);
  if (std::ssize(begun) == ranks) {
    begun.push_back(layers);
    return predict_step(counter, StageLayout(ranks, begun), kFast).times.makespan;
  }
  double best = 1e300;
  begun.push_back(0);
  for (int boundary = begun[begun.size() - 2] + 1; boundary <= layers + static_cast<int>(begun.size()) - 1 - ranks;
       ++boundary) {
    begun.back() = boundary;
    best = std::min(best, best_of_all_cuts(counter, ranks, begun));
  }
  return best;
}

TEST(Placement, IsTheBestOfAFewHundredCuts) {
  Random random;
  for (int i = 0; i < 6; ++i) {
    const std::string map = i == 0 ? "none" : test::random_map(random, 8, false);
    const StepCounter counter(shape_of(map, 8, 8));
    // Of equally fast cuts, to a thousandth, it may be the one that sends least.
    EXPECT_LE(place_stages(counter, kFast, {.ranks = 3}).times.makespan, 1.0011 * best_of_all_cuts(counter, 3)) << map;
  }
}

TEST(Placement, IsNearlyTheBestOfManyCuts) {
  for (const std::string map : {"sandwich-top:3", "pizza-bottom:3", "lasagna-middle:4", "yoco", "cla:2"}) {
    const StepCounter counter(shape_of(map, 13, 6));  // 495 cuts
    EXPECT_LE(place_stages(counter, kFast, {.ranks = 5}).times.makespan, 1.03 * best_of_all_cuts(counter, 5)) << map;
  }
}

TEST(Placement, LasagnaIsCutAtGroupBordersAndSendsNoKeyValues) {
  for (const std::string map : {"lasagna-bottom:3", "lasagna-top:3", "lasagna-middle:3"}) {
    const bool first_alone = map != "lasagna-bottom:3";
    StepShape shape = shape_of(map, first_alone ? 13 : 12);
    shape.model.vocab = 64;  // no head that would weigh as much as layers
    const StepCounter counter(shape);
    const int ranks = first_alone ? 2 : 3;
    const PredictedStep placed = place_stages(counter, {1e12, 1e9}, {.ranks = ranks});
    std::int64_t key_values = 0;
    for (int from = 0; from < ranks; ++from) {
      for (int to = 0; to < ranks; ++to) {
        const LinkBytes link = link_bytes(placed.chain, placed.costs, from, to);
        key_values += link.key_value + link.key_value_gradient;
      }
    }
    EXPECT_EQ(key_values, 0) << map << " at " << fmt::format("{}", fmt::join(placed.layout.boundaries(), ","));
  }
}

TEST(Placement, FitsIntoTheMemoryThatThereIsOrSaysWhatItNeeds) {
  StepShape shape = shape_of("none", 12, 16);
  shape.model.vocab = 65536;
  const StepCounter counter(shape);
  const PredictedStep free = place_stages(counter, kFast, {.ranks = 3});
  const std::int64_t limit = free.most_memory() * 97 / 100;
  const PredictedStep tight = place_stages(counter, kFast, {.ranks = 3, .memory_bytes = limit});
  EXPECT_LE(tight.most_memory(), limit);
  // Times closer than a thousandth are equal to the search.
  EXPECT_GE(tight.times.makespan, 0.999 * free.times.makespan);
  try {
    place_stages(counter, kFast, {.ranks = 3, .memory_bytes = 1 << 20});
    FAIL() << "fits into 1 MiB";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("GiB"));
  }
}

// Work is counted, so that every rank stops at the same place.
TEST(Placement, ALargeModelOnManyRanksIsPlacedWithTheWorkThatIsAllowed) {
  const StepCounter counter(shape_of("sandwich-top:3", 24, 32));
  const double even = predict_step(counter, StageLayout::even(24, 8), kFast).times.makespan;
  std::int64_t before = 0;
  for (const std::int64_t most : {20'000, 60'000}) {
    const PredictedStep placed = place_stages(counter, kFast, {.ranks = 8, .most_searched = most});
    const std::int64_t last = 2 * 32 * std::ssize(placed.chain.chunks);  // it ends with the one that goes over
    EXPECT_GT(placed.searched, most / 2);
    EXPECT_LE(placed.searched, most + last);
    EXPECT_GT(placed.searched, before);
    EXPECT_LT(placed.times.makespan, even);
    before = placed.searched;
  }
  EXPECT_LT(place_stages(counter, kFast, {.ranks = 8}).searched, 420'000);
  const StepCounter only_one_cut(shape_of("none", 2, 4));
  EXPECT_EQ(place_stages(only_one_cut, kFast, {.ranks = 2}).searched, 0);
}

}  // namespace
}  // namespace kvloom
