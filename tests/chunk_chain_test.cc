// The chain against the plan: ranks play it, forward and backward, with nothing but what they have made or been sent.
#include "parallel/chunk_chain.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "core/kv_store.h"
#include "kernels/error.h"
#include "tests/support/model_fixture.h"

namespace kvloom {
namespace {

using test::Random;

struct Case {
  KvMap map;
  IterationPlan plan;
  StageLayout layout;
  ChunkChain chain;
};

Case make_case(const std::string& map, int layers, const StageLayout& layout, const Passes& passes = {}) {
  const KvMap parsed = KvMap::parse(map, layers, 8);
  const IterationPlan plan = make_iteration_plan(parsed, passes, PlanMode::kTrain);
  return {parsed, plan, layout, make_chunk_chain(plan, parsed, layout)};
}

const std::vector<LayerRun>& runs_of(const Case& c, const Chunk& chunk) { return c.plan.steps[chunk.step].layers; }

KvName read_of(const Case& c, KvPart part, const LayerRun& run) {
  return {part, c.map.source(part, run.layer), run.read_pass[part]};
}

// What a rank holds while it plays.
struct Held {
  std::set<int> outputs;  // of chunks
  std::set<KvName> key_values;
};

void expect_runs_covered_once(const Case& c) {
  std::vector<std::pair<std::size_t, std::size_t>> seen;
  for (const Chunk& chunk : c.chain.chunks) {
    ASSERT_LT(chunk.first_run, chunk.end_run);
    EXPECT_EQ(chunk.keeps_gradient, c.plan.steps[chunk.step].keeps_gradient);
    EXPECT_EQ(chunk.rank, c.layout.rank_of_stage(chunk.stage));
    for (std::size_t i = chunk.first_run; i < chunk.end_run; ++i) {
      EXPECT_EQ(c.layout.stage_of_layer(runs_of(c, chunk)[i].layer), chunk.stage);
      seen.emplace_back(chunk.step, i);
    }
  }
  std::size_t count = 0;
  for (const PlanStep& step : c.plan.steps) count += step.layers.size();
  EXPECT_EQ(seen.size(), count);
  EXPECT_TRUE(std::ranges::is_sorted(seen));
  EXPECT_EQ(std::ranges::count_if(c.chain.chunks, &Chunk::is_head_input), 1);
  EXPECT_TRUE(c.chain.chunks.back().is_head_input);
  EXPECT_EQ(c.chain.chunks.back().rank, c.chain.ranks - 1);
}

// DESIGN 5: a pass starts from the segment's input, not from the pass before.
int expected_input(const Case& c, std::size_t index) {
  const Chunk& chunk = c.chain.chunks[index];
  if (chunk.first_run > 0) return static_cast<int>(index) - 1;
  int input = kEmbedding;
  for (std::size_t i = 0; i < index; ++i) {
    const PlanStep& step = c.plan.steps[c.chain.chunks[i].step];
    if (step.last && step.segment < c.plan.steps[chunk.step].segment) input = static_cast<int>(i);
  }
  return input;
}

void play_forward(const Case& c) {
  std::vector<Held> ranks(static_cast<std::size_t>(c.chain.ranks));
  std::vector<int> received(c.chain.edges.size(), 0);
  for (std::size_t index = 0; index < c.chain.chunks.size(); ++index) {
    const Chunk& chunk = c.chain.chunks[index];
    Held& held = ranks[static_cast<std::size_t>(chunk.rank)];
    for (const int number : c.chain.needs[index]) {
      const Edge& edge = c.chain.edges[static_cast<std::size_t>(number)];
      EXPECT_EQ(edge.to_rank, chunk.rank);
      EXPECT_LT(edge.from_chunk, static_cast<int>(index));
      if (edge.kind == EdgeKind::kHidden) held.outputs.insert(edge.from_chunk);
      for (const KvPart part : kKvParts) {
        if (edge.carries[part]) held.key_values.insert({part, edge.source, edge.pass});
      }
      ++received[static_cast<std::size_t>(number)];
    }
    EXPECT_EQ(chunk.input, expected_input(c, index));
    EXPECT_TRUE(chunk.input == kEmbedding || held.outputs.contains(chunk.input)) << "chunk " << index;
    EXPECT_TRUE(chunk.input != kEmbedding || chunk.rank == 0);
    for (std::size_t i = chunk.first_run; i < chunk.end_run; ++i) {
      const LayerRun& run = runs_of(c, chunk)[i];
      for (const KvPart part : kKvParts) {
        if (run.computes(part)) held.key_values.insert({part, run.layer, run.pass});
        if (run.attention != AttentionWork::kRead) continue;
        EXPECT_TRUE(held.key_values.contains(read_of(c, part, run)))
            << name_of(part) << " for layer " << run.layer << " pass " << run.pass << " on rank " << chunk.rank;
      }
    }
    held.outputs.insert(static_cast<int>(index));
    for (const int number : c.chain.gives[index]) {
      EXPECT_EQ(c.chain.edges[static_cast<std::size_t>(number)].from_chunk, static_cast<int>(index));
    }
  }
  EXPECT_TRUE(std::ranges::all_of(received, [](int times) { return times == 1; }));
}

bool reads(const Case& c, const Chunk& chunk, const KvName& name) {
  const auto& runs = runs_of(c, chunk);
  return std::any_of(runs.begin() + static_cast<std::ptrdiff_t>(chunk.first_run),
                     runs.begin() + static_cast<std::ptrdiff_t>(chunk.end_run), [&](const LayerRun& run) {
                       return run.attention == AttentionWork::kRead && read_of(c, name.part, run) == name;
                     });
}

// Every edge crosses between two ranks, once, and is used by those it names.
void expect_edges_needed(const Case& c) {
  std::set<std::tuple<EdgeKind, int, int, int>> seen;
  for (const Edge& edge : c.chain.edges) {
    EXPECT_NE(edge.from_rank, edge.to_rank);
    EXPECT_TRUE(seen.insert({edge.kind, edge.from_chunk, edge.to_rank, edge.source}).second) << describe(edge);
    EXPECT_FALSE(edge.readers.empty());
    EXPECT_TRUE(std::ranges::is_sorted(edge.readers));
    for (const int reader : edge.readers) {
      const Chunk& chunk = c.chain.chunks[static_cast<std::size_t>(reader)];
      EXPECT_EQ(chunk.rank, edge.to_rank);
      if (edge.kind == EdgeKind::kHidden) {
        EXPECT_EQ(chunk.input, edge.from_chunk);
        continue;
      }
      EXPECT_TRUE(reads(c, chunk, {KvPart::kKey, edge.source, edge.pass}) ||
                  reads(c, chunk, {KvPart::kValue, edge.source, edge.pass}));
    }
    for (const KvPart part : kKvParts) {
      const bool is_read =
          edge.kind == EdgeKind::kKeyValue && std::ranges::any_of(edge.readers, [&](int reader) {
            return reads(c, c.chain.chunks[static_cast<std::size_t>(reader)], {part, edge.source, edge.pass});
          });
      EXPECT_EQ(edge.carries[part], is_read) << name_of(part) << " alone where only that is read: " << describe(edge);
    }
  }
}

// Gradients of K/V of (source, pass), counted where they arise: on the source's rank and along edges.
void expect_gradient_counts(const Case& c) {
  std::map<KvName, int> counted;
  std::map<KvName, const Chunk*> writers;
  for (const Chunk& chunk : c.chain.chunks) {
    for (std::size_t i = chunk.first_run; i < chunk.end_run; ++i) {
      const LayerRun& run = runs_of(c, chunk)[i];
      for (const KvPart part : kKvParts) {
        if (run.computes(part)) writers[{part, run.layer, run.pass}] = &chunk;
        if (run.attention != AttentionWork::kRead || !chunk.keeps_gradient) continue;
        const KvName read = read_of(c, part, run);
        if (writers.at(read)->rank == chunk.rank) ++counted[read];
      }
    }
  }
  for (const Edge& edge : c.chain.edges) {
    const bool from_keeps = c.chain.chunks[static_cast<std::size_t>(edge.from_chunk)].keeps_gradient;
    const bool to_keeps = std::ranges::any_of(
        edge.readers, [&](int reader) { return c.chain.chunks[static_cast<std::size_t>(reader)].keeps_gradient; });
    EXPECT_EQ(edge.returns_gradient, from_keeps && to_keeps) << describe(edge);
    for (const KvPart part : kKvParts) {
      if (edge.gradient_reads[part] == 0) continue;
      EXPECT_TRUE(edge.carries[part] && edge.returns_gradient);
      counted[{part, edge.source, edge.pass}] += edge.gradient_reads[part];
    }
  }
  for (const auto& [name, writer] : writers) {
    if (!writer->keeps_gradient) continue;
    EXPECT_EQ(counted[name], expected_gradient_readers(c.plan, c.map, name.part, name.source, name.pass));
  }
}

// Backward in the reverse order: a gradient that is sent is complete, and one that is used has come.
void play_backward(const Case& c) {
  std::set<int> done;
  std::set<int> sent;
  for (int index = static_cast<int>(c.chain.chunks.size()) - 1; index >= 0; --index) {
    const auto i = static_cast<std::size_t>(index);
    if (!c.chain.chunks[i].keeps_gradient) {
      EXPECT_TRUE(c.chain.backward_needs[i].empty() && c.chain.backward_gives[i].empty());
      continue;
    }
    for (const int number : c.chain.backward_needs[i]) {
      EXPECT_EQ(c.chain.edges[static_cast<std::size_t>(number)].from_chunk, index);
      EXPECT_TRUE(sent.contains(number));
    }
    done.insert(index);
    for (const int number : c.chain.backward_gives[i]) {
      const Edge& edge = c.chain.edges[static_cast<std::size_t>(number)];
      EXPECT_TRUE(edge.returns_gradient);
      for (const int reader : edge.readers) {
        EXPECT_TRUE(done.contains(reader) || !c.chain.chunks[static_cast<std::size_t>(reader)].keeps_gradient);
      }
      EXPECT_TRUE(sent.insert(number).second) << describe(edge);
    }
  }
  EXPECT_EQ(static_cast<std::ptrdiff_t>(sent.size()), std::ranges::count_if(c.chain.edges, &Edge::returns_gradient));
}

void expect_right(const Case& c) {
  expect_runs_covered_once(c);
  play_forward(c);
  expect_edges_needed(c);
  expect_gradient_counts(c);
  play_backward(c);
}

StageLayout random_layout(Random& random, int layers) {
  const auto stages = static_cast<int>(random.integer(1, std::min(8, layers)));
  std::vector<int> divisors;
  for (int ranks = 1; ranks <= stages; ++ranks) {
    if (stages % ranks == 0) divisors.push_back(ranks);
  }
  std::vector<int> cuts(static_cast<std::size_t>(layers) - 1);
  std::iota(cuts.begin(), cuts.end(), 1);
  std::ranges::shuffle(cuts, random.engine());
  std::vector<int> boundaries(cuts.begin(), cuts.begin() + stages - 1);
  boundaries.insert(boundaries.end(), {0, layers});
  std::ranges::sort(boundaries);
  const auto choice = random.integer(0, static_cast<std::int64_t>(divisors.size()) - 1);
  return {divisors[static_cast<std::size_t>(choice)], boundaries};
}

TEST(ChunkChain, RanksThatPlayItHaveWhateverTheyRead) {
  Random random;
  for (int i = 0; i < 150 && !testing::Test::HasFailure(); ++i) {
    const auto layers = static_cast<int>(random.integer(1, 16));
    const Passes passes{static_cast<int>(random.integer(0, 4)), static_cast<int>(random.integer(1, 3))};
    const std::string map = test::random_map(random, layers, true);
    SCOPED_TRACE(map);
    expect_right(make_case(map, layers, random_layout(random, layers), passes));
  }
  for (const std::string& name : test::nine_maps()) {
    for (int l = 1; l <= 8; l += 2)
      expect_right(make_case(name + ":" + std::to_string(l), 8, random_layout(random, 8)));
  }
}

TEST(ChunkChain, OneRankHasNoEdges) {
  for (const std::string map : {"none", "sandwich-middle:3", "lasagna-top:4"}) {
    EXPECT_TRUE(make_case(map, 8, StageLayout::even(8, 1)).chain.edges.empty());
    EXPECT_TRUE(make_case(map, 8, StageLayout(1, {0, 3, 6, 8})).chain.edges.empty());
  }
}

TEST(ChunkChain, LasagnaCutAtGroupBordersSendsNoKeyValues) {
  for (const std::string position : {"bottom", "middle", "top"}) {
    const bool first_alone = position != "bottom";
    const StageLayout layout(3, {0, 4, 7, 10});
    const Case c = make_case("lasagna-" + position + (first_alone ? ":4" : ":3"), 10, layout);
    EXPECT_TRUE(std::ranges::none_of(c.chain.edges, [](const Edge& e) { return e.kind == EdgeKind::kKeyValue; }));
    EXPECT_EQ(c.chain.edges.size(), 2);
    EXPECT_FALSE(
        std::ranges::none_of(make_case("lasagna-" + position + ":4", 10, StageLayout(3, {0, 2, 5, 10})).chain.edges,
                             [](const Edge& e) { return e.kind == EdgeKind::kKeyValue; }));
  }
}

// Layers 0 1 2 | 3 4 5, all reading layer 4: its K/V go down to rank 0 for each pass to come, and back as gradients
// between the two passes that keep them.
TEST(ChunkChain, UpwardReadsSendKeyValuesToALowerRankForTheNextPass) {
  const Case c = make_case("0_4_4_4_4_5", 6, StageLayout::even(6, 2), {1, 2});
  std::vector<const Edge*> down;
  for (const Edge& edge : c.chain.edges) {
    if (edge.kind == EdgeKind::kKeyValue) down.push_back(&edge);
  }
  ASSERT_EQ(down.size(), 2);
  EXPECT_EQ(describe(*down[0]), "K/V of layer 4 in pass 0, from rank 1 to rank 0");
  EXPECT_FALSE(down[0]->returns_gradient);
  EXPECT_EQ(describe(*down[1]), "K/V of layer 4 in pass 1, from rank 1 to rank 0");
  EXPECT_TRUE(down[1]->returns_gradient);
  EXPECT_EQ(down[1]->gradient_reads, (ByPart<int>{2, 2}));
}

// Layers 0 1 | 2 3: layer 2 reads V of layer 0 and its own K, layer 1 K of layer 2.
TEST(ChunkChain, KeysOrValuesCrossAloneWhereOnlyTheyAreRead) {
  const Case c = make_case("0_2:0_2:0_3", 4, StageLayout::even(4, 2), {0, 2});
  std::vector<std::string> crossed;
  for (const Edge& edge : c.chain.edges) {
    if (edge.kind != EdgeKind::kKeyValue) continue;
    crossed.push_back(describe(edge));
    EXPECT_EQ(edge.tensors(), 1) << describe(edge);
    EXPECT_EQ(edge.gradient_tensors(), 1) << describe(edge);
  }
  EXPECT_EQ(crossed, (std::vector<std::string>{"V of layer 0 in pass 0, from rank 0 to rank 1",
                                               "K of layer 2 in pass 0, from rank 1 to rank 0"}));
}

}  // namespace
}  // namespace kvloom
