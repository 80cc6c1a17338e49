// The plan against the text of DESIGN 5: segments by another route, and a simulation of who needs what.
#include "core/iteration_plan.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <set>

#include "core/kv_store.h"
#include "tests/support/model_fixture.h"

namespace kvloom {
namespace {

using Key = KvName;

// Intervals [reader, source] of upward reads, merged where they touch a common layer.
std::vector<std::pair<int, int>> merged_upward_reads(const KvMap& map) {
  std::vector<std::pair<int, int>> merged;
  for (int layer = 0; layer < map.layers(); ++layer) {
    for (const KvPart part : kKvParts) {
      const int source = map.source(part, layer);
      if (source <= layer) continue;
      if (!merged.empty() && layer <= merged.back().second) {
        merged.back().second = std::max(merged.back().second, source);
      } else {
        merged.emplace_back(layer, source);
      }
    }
  }
  return merged;
}

void expect_consistent(const KvMap& map, const IterationPlan& plan, PlanMode mode) {
  std::set<Key> computed;
  std::map<Key, int> reads;
  std::map<Key, int> gradient_reads;
  std::map<int, int> last_pass;
  for (const PlanStep& step : plan.steps) {
    const Segment& segment = plan.segments[static_cast<std::size_t>(step.segment)];
    for (const LayerRun& run : step.layers) {
      for (const KvPart part : kKvParts) {
        if (!run.computes(part)) continue;
        EXPECT_TRUE(map.owns(part, run.layer));
        computed.insert({part, run.layer, step.pass});
      }
      if (run.attention == AttentionWork::kRead) {
        for (const KvPart part : kKvParts) {
          const int source = map.source(part, run.layer);
          int wanted = step.pass;
          if (source > run.layer) wanted = step.pass - 1;
          if (source < segment.first) wanted = last_pass.at(source);
          const Key name{part, source, wanted};
          EXPECT_EQ(run.read_pass[part], wanted) << "layer " << run.layer << " pass " << step.pass;
          EXPECT_TRUE(computed.contains(name)) << "layer " << run.layer << " pass " << step.pass;
          ++reads[name];
          if (step.keeps_gradient) ++gradient_reads[name];
        }
      } else if (run.block == BlockWork::kCompute) {
        EXPECT_TRUE(map.reads_upward(run.layer) && step.pass == 0) << "only the first upward read is left out";
      }
      // A block's hidden states matter to a layer above in this pass, or leave the segment with its last.
      const bool needed = step.last || run.layer < segment.last;
      EXPECT_EQ(run.block == BlockWork::kCompute, needed) << "layer " << run.layer << " pass " << step.pass;
    }
    if (step.last) {
      for (int layer = segment.first; layer <= segment.last; ++layer) last_pass[layer] = step.pass;
    }
  }
  for (const Key& key : computed) {
    const bool cached = mode == PlanMode::kPrefill && key.pass == last_pass.at(key.source);
    EXPECT_TRUE(reads.contains(key) || cached)
        << name_of(key.part) << " of layer " << key.source << " pass " << key.pass << " unread";
    EXPECT_EQ(expected_gradient_readers(plan, map, key.part, key.source, key.pass), gradient_reads[key]);
  }
  if (mode == PlanMode::kPrefill) {
    for (const int source : map.kv_layers()) {
      for (const KvPart part : kKvParts) {
        EXPECT_EQ(computed.contains({part, source, last_pass.at(source)}), map.owns(part, source));
      }
    }
  }
}

std::vector<KvMap> many_maps(test::Random& random) {
  std::vector<KvMap> maps;
  for (const int layers : {1, 2, 6, 7, 22}) {
    for (const std::string& name : test::nine_maps()) {
      for (int l = 1; l <= std::min(layers, 4); ++l)
        maps.push_back(KvMap::parse(name + ":" + std::to_string(l), layers));
    }
    maps.push_back(KvMap::parse("yoco", layers, 4));
  }
  for (int i = 0; i < 200; ++i) {
    const int layers = static_cast<int>(random.integer(1, 12));
    maps.push_back(KvMap::parse(test::random_map(random, layers, true), layers, 3));
  }
  return maps;
}

TEST(Segments, AreTheMergedIntervalsOfUpwardReads) {
  test::Random random;
  for (const KvMap& map : many_maps(random)) {
    const std::vector<Segment> segments = segments_of(map);
    std::vector<std::pair<int, int>> iterated;
    int next = 0;
    for (const Segment& segment : segments) {
      EXPECT_EQ(segment.first, next) << map.explicit_form();
      next = segment.last + 1;
      if (segment.iterated) iterated.emplace_back(segment.first, segment.last);
    }
    EXPECT_EQ(next, map.layers());
    EXPECT_EQ(iterated, merged_upward_reads(map)) << map.explicit_form();
  }
}

TEST(IterationPlan, ReadsWhatWasComputedAndComputesWhatIsRead) {
  test::Random random;
  for (const KvMap& map : many_maps(random)) {
    SCOPED_TRACE(map.explicit_form());
    const Passes passes{.without_gradient = static_cast<int>(random.integer(0, 4)),
                        .with_gradient = static_cast<int>(random.integer(1, 3))};
    expect_consistent(map, make_iteration_plan(map, passes, PlanMode::kTrain), PlanMode::kTrain);
    expect_consistent(map, make_iteration_plan(map, passes, PlanMode::kPrefill, random.integer(1, 9)),
                      PlanMode::kPrefill);
  }
}

TEST(IterationPlan, PrefillNeedsNoMorePassesThanPositions) {
  const KvMap map = KvMap::parse("sandwich-top:3", 22);
  for (const auto& [positions, passes] : {std::pair(1, 1), std::pair(5, 5), std::pair(9, 9), std::pair(50, 9)}) {
    int steps = 0;
    for (const PlanStep& step : make_iteration_plan(map, {}, PlanMode::kPrefill, positions).steps) {
      if (step.segment == 1) ++steps;
      EXPECT_FALSE(step.keeps_gradient);
    }
    EXPECT_EQ(steps, passes);
  }
}

TEST(IterationPlan, AboveTheLastKvLayerPrefillRunsForAskedPositionsAlone) {
  const KvMap map = KvMap::parse("sandwich-middle:1", 7);  // all read layer 3
  for (const PlanStep& step : make_iteration_plan(map, {}, PlanMode::kPrefill, 20).steps) {
    for (const LayerRun& run : step.layers) {
      EXPECT_EQ(run.positions == Positions::kAsked, step.last && run.layer >= 3) << run.layer << " " << run.pass;
    }
  }
}

// Layers 0 and 21 run once. Of the segment [1, 20], whose one source is layer 20: in passes 0 to 7 layers 1 to 19 run
// and layer 20 computes K and V alone; in pass 8 all twenty run. Passes 7 and 8 keep gradient; in pass 0 the nineteen
// upward reads are zero.
constexpr std::int64_t kBlocks = 2 + 8 * 19 + 20;
constexpr std::int64_t kBlocksWithGradient = 2 + 19 + 20;

void expect_sandwich_top(const LayerRunCount& count) {
  EXPECT_EQ(count.blocks, kBlocks);
  EXPECT_EQ(count.blocks_with_gradient, kBlocksWithGradient);
  EXPECT_EQ(count.key_value_only, 8);
  EXPECT_EQ(count.key_value_only_with_gradient, 1);
  EXPECT_EQ(count.without_attention, 19);
}

TEST(LayerRuns, OfSandwichTopAreCountedByHand) {
  const KvMap map = KvMap::parse("sandwich-top:3", 22);
  expect_sandwich_top(count_layer_runs(make_iteration_plan(map, {}, PlanMode::kTrain)));
}

TEST(LayerRuns, AreWhatTrainingReallyRuns) {
  test::Random random;
  CachingCpuAllocator allocator;
  const ModelConfig config = ModelConfig::from_proto(test::small_model(22, "sandwich-top:3"));
  Model model(config, DType::kF32, allocator);
  model.initialize(random.seed());
  ModelGradients gradients(model);
  TrainingPass pass(model, {}, 6, Recompute::kNone);
  const auto tokens = random.tokens(12, config.vocab);
  pass.run(make_token_batch(model, tokens, random.tokens(12, config.vocab), 2), 1, gradients);
  expect_sandwich_top(pass.tally());
}

TEST(IterationPlan, BadPassesAreRefused) {
  const KvMap map = KvMap::parse("none", 4);
  EXPECT_THROW(make_iteration_plan(map, {.without_gradient = -1, .with_gradient = 1}, PlanMode::kTrain), InputError);
  EXPECT_THROW(make_iteration_plan(map, {.without_gradient = 1, .with_gradient = 0}, PlanMode::kTrain), InputError);
  constexpr int kHuge = std::numeric_limits<int>::max();
  for (const PlanMode mode : {PlanMode::kTrain, PlanMode::kPrefill}) {
    EXPECT_THROW(make_iteration_plan(map, {.without_gradient = kHuge, .with_gradient = kHuge}, mode, 9), InputError);
  }
  EXPECT_THROW(make_iteration_plan(map, {.without_gradient = 0, .with_gradient = 0}, PlanMode::kPrefill, 9),
               InputError);
  EXPECT_THROW(make_iteration_plan(map, {}, PlanMode::kPrefill, 0), InputError);
}

}  // namespace
}  // namespace kvloom
