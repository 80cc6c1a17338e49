#include "parallel/chunk_chain.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <tuple>

#include "core/kv_store.h"

namespace kvloom {
namespace {

class ChainMaker {
 public:
  ChainMaker(const IterationPlan& plan, const KvMap& map, const StageLayout& layout)
      : plan_(plan), map_(map), layout_(layout) {}

  ChunkChain make() {
    chain_.ranks = layout_.ranks();
    cut_steps();
    connect_hidden();
    connect_key_values();
    std::ranges::stable_sort(chain_.edges, {}, &Edge::from_chunk);
    list_edges();
    return std::move(chain_);
  }

 private:
  void cut_steps() {
    int segment_input = kEmbedding;
    for (std::size_t step = 0; step < plan_.steps.size(); ++step) {
      const std::vector<LayerRun>& runs = plan_.steps[step].layers;
      int input = segment_input;
      for (std::size_t first = 0; first < runs.size();) {
        const int stage = layout_.stage_of_layer(runs[first].layer);
        std::size_t end = first;
        while (end < runs.size() && layout_.stage_of_layer(runs[end].layer) == stage) ++end;
        chain_.chunks.push_back({.step = step,
                                 .first_run = first,
                                 .end_run = end,
                                 .stage = stage,
                                 .rank = layout_.rank_of_stage(stage),
                                 .keeps_gradient = plan_.steps[step].keeps_gradient,
                                 .input = input,
                                 .is_head_input = false});
        input = static_cast<int>(chain_.chunks.size()) - 1;
        first = end;
      }
      if (plan_.steps[step].last) segment_input = input;
    }
    chain_.chunks.back().is_head_input = true;
  }

  // The edge of these ends, made at its first reader.
  Edge& edge(EdgeKind kind, int from_chunk, int to_rank, int source, int pass) {
    const auto key = std::tuple(kind, from_chunk, to_rank, source);
    const auto [found, is_new] = index_.try_emplace(key, chain_.edges.size());
    if (is_new) {
      chain_.edges.push_back({.kind = kind,
                              .from_chunk = from_chunk,
                              .from_rank = chain_.chunks[static_cast<std::size_t>(from_chunk)].rank,
                              .to_rank = to_rank,
                              .source = source,
                              .pass = pass,
                              .carries = {},
                              .readers = {},
                              .returns_gradient = false,
                              .gradient_reads = {}});
    }
    return chain_.edges[found->second];
  }

  void connect_hidden() {
    for (std::size_t index = 0; index < chain_.chunks.size(); ++index) {
      const Chunk& chunk = chain_.chunks[index];
      if (chunk.input == kEmbedding) continue;
      const Chunk& from = chain_.chunks[static_cast<std::size_t>(chunk.input)];
      if (from.rank == chunk.rank) continue;
      Edge& hidden = edge(EdgeKind::kHidden, chunk.input, chunk.rank, -1, plan_.steps[from.step].pass);
      hidden.readers.push_back(static_cast<int>(index));
      hidden.returns_gradient |= from.keeps_gradient && chunk.keeps_gradient;
    }
  }

  void connect_key_values() {
    std::map<KvName, int> writers;  // chunks
    for (std::size_t index = 0; index < chain_.chunks.size(); ++index) {
      const Chunk& chunk = chain_.chunks[index];
      // A source's own queries may read it at once, so each layer writes before it reads.
      for (std::size_t i = chunk.first_run; i < chunk.end_run; ++i) {
        const LayerRun& run = plan_.steps[chunk.step].layers[i];
        for (const KvPart part : kKvParts) {
          if (run.computes(part)) writers[{part, run.layer, run.pass}] = static_cast<int>(index);
        }
        for (const KvPart part : kKvParts) {
          if (run.attention == AttentionWork::kRead) connect_read(part, run, static_cast<int>(index), writers);
        }
      }
    }
  }

  void connect_read(KvPart part, const LayerRun& run, int reader, const std::map<KvName, int>& writers) {
    const KvName name{part, map_.source(part, run.layer), run.read_pass[part]};
    const int writer = writers.at(name);
    const Chunk& from = chain_.chunks[static_cast<std::size_t>(writer)];
    const Chunk& to = chain_.chunks[static_cast<std::size_t>(reader)];
    if (from.rank == to.rank) return;
    Edge& key_value = edge(EdgeKind::kKeyValue, writer, to.rank, name.source, name.pass);
    key_value.carries[part] = true;
    if (key_value.readers.empty() || key_value.readers.back() != reader) key_value.readers.push_back(reader);
    if (!from.keeps_gradient || !to.keeps_gradient) return;
    key_value.returns_gradient = true;
    ++key_value.gradient_reads[part];
  }

  void list_edges() {
    for (auto* lists : {&chain_.needs, &chain_.gives, &chain_.backward_needs, &chain_.backward_gives}) {
      lists->resize(chain_.chunks.size());
    }
    for (std::size_t index = 0; index < chain_.edges.size(); ++index) {
      const Edge& edge = chain_.edges[index];
      const auto number = static_cast<int>(index);
      chain_.gives[static_cast<std::size_t>(edge.from_chunk)].push_back(number);
      chain_.needs[static_cast<std::size_t>(edge.readers.front())].push_back(number);
      if (!edge.returns_gradient) continue;
      chain_.backward_needs[static_cast<std::size_t>(edge.from_chunk)].push_back(number);
      const auto last = std::ranges::find_if(
          edge.readers, [&](int reader) { return chain_.chunks[static_cast<std::size_t>(reader)].keeps_gradient; });
      chain_.backward_gives[static_cast<std::size_t>(*last)].push_back(number);
    }
  }

  const IterationPlan& plan_;
  const KvMap& map_;
  const StageLayout& layout_;
  ChunkChain chain_;
  std::map<std::tuple<EdgeKind, int, int, int>, std::size_t> index_;
};

}  // namespace

ChunkChain make_chunk_chain(const IterationPlan& plan, const KvMap& map, const StageLayout& layout) {
  return ChainMaker(plan, map, layout).make();
}

int Edge::tensors() const {
  if (kind == EdgeKind::kHidden) return 1;
  return (carries.key ? 1 : 0) + (carries.value ? 1 : 0);
}

int Edge::gradient_tensors() const {
  if (!returns_gradient) return 0;
  if (kind == EdgeKind::kHidden) return 1;
  return (gradient_reads.key > 0 ? 1 : 0) + (gradient_reads.value > 0 ? 1 : 0);
}

std::string describe(const Edge& edge) {
  const std::string_view parts = edge.carries.key && edge.carries.value ? "K/V" : edge.carries.key ? "K" : "V";
  const std::string what = edge.kind == EdgeKind::kHidden
                               ? fmt::format("hidden states of chunk {}", edge.from_chunk)
                               : fmt::format("{} of layer {} in pass {}", parts, edge.source, edge.pass);
  return fmt::format("{}, from rank {} to rank {}", what, edge.from_rank, edge.to_rank);
}

}  // namespace kvloom
