#include "parallel/step_cost.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "core/parameters.h"
#include "core/shard.h"
#include "parallel/pipeline.h"

namespace kvloom {
namespace {

constexpr std::size_t at(int index) { return static_cast<std::size_t>(index); }

// The last tensor rank's part: none is larger.
ModelConfig part_of_model(const ModelConfig& whole, int tensor_ranks) {
  ModelShard shard = ModelShard::whole(whole);
  shard.tensor_size = tensor_ranks;
  shard.tensor_rank = tensor_ranks - 1;
  shard.check(whole);
  ModelConfig part = whole;
  part.heads = shard.heads(whole).size();
  part.kv_heads = shard.kv_heads(whole).size();
  part.ffn = shard.ffn(whole).size();
  part.vocab = shard.vocab(whole).size();
  return part;
}

}  // namespace

ScheduleCosts ChainCosts::at(const Speeds& speeds) const {
  ScheduleCosts costs;
  for (const Flops& one : flops) {
    costs.forward.push_back(one.forward / speeds.flops_per_second);
    costs.backward.push_back(one.backward / speeds.flops_per_second);
  }
  const double seconds_per_byte = speeds.link_bytes_per_second > 0 ? 1 / speeds.link_bytes_per_second : 0;
  for (std::size_t edge = 0; edge < bytes.size(); ++edge) {
    costs.crossing.push_back(static_cast<double>(bytes[edge]) * seconds_per_byte);
    costs.gradient_crossing.push_back(static_cast<double>(gradient_bytes[edge]) * seconds_per_byte);
  }
  return costs;
}

LinkBytes link_bytes(const ChunkChain& chain, const ChainCosts& costs, int from_rank, int to_rank) {
  LinkBytes link;
  for (std::size_t i = 0; i < chain.edges.size(); ++i) {
    const Edge& edge = chain.edges[i];
    const bool hidden = edge.kind == EdgeKind::kHidden;
    if (edge.from_rank == from_rank && edge.to_rank == to_rank) {
      (hidden ? link.hidden : link.key_value) += costs.bytes[i];
      ++link.messages;
    }
    if (edge.from_rank == to_rank && edge.to_rank == from_rank && edge.returns_gradient) {
      (hidden ? link.hidden_gradient : link.key_value_gradient) += costs.gradient_bytes[i];
      ++link.messages;
    }
  }
  return link;
}

StepCounter::StepCounter(StepShape shape)
    : shape_(std::move(shape)),
      part_(part_of_model(shape_.model, shape_.tensor_ranks)),
      plan_(make_iteration_plan(shape_.model.kv_map, shape_.passes, PlanMode::kTrain)) {
  const auto sequences = static_cast<double>(shape_.sequences);
  for (const PlanStep& step : plan_.steps) {
    std::vector<Flops>& runs = flops_.emplace_back();
    for (const LayerRun& run : step.layers) {
      Flops one = layer_run_flops(part_, run, shape_.model.context);
      if (shape_.recompute == Recompute::kFull) one.backward += one.forward;
      runs.push_back({sequences * one.forward, step.keeps_gradient ? sequences * one.backward : 0});
    }
  }
}

std::int64_t StepCounter::own_rows() const {
  return shape_.sequence_parallel == SequenceParallel::kYes ? rows() / shape_.tensor_ranks : rows();
}

Flops StepCounter::embedding_flops() const {
  const auto elements = static_cast<double>(rows() * shape_.model.hidden);
  return {elements, elements};
}

Flops StepCounter::head_flops() const { return kvloom::head_flops(part_, rows(), PlanMode::kTrain); }

std::int64_t StepCounter::hidden_bytes() const {
  return own_rows() * shape_.model.hidden * static_cast<std::int64_t>(size_of(shape_.dtype));
}

std::int64_t StepCounter::part_bytes(DType dtype) const {
  return rows() * part_.kv_heads * part_.head_dim * static_cast<std::int64_t>(size_of(dtype));
}

std::int64_t StepCounter::kept_bytes(const LayerRun& run) const { return kept_bytes(run, shape_.recompute); }

std::int64_t StepCounter::kept_bytes(const LayerRun& run, Recompute recompute) const {
  const auto width = static_cast<std::int64_t>(size_of(shape_.dtype));
  std::int64_t bytes = hidden_bytes();
  for (const KvPart part : kKvParts) {
    if (run.computes(part)) bytes += part_bytes(shape_.dtype);
  }
  if (recompute == Recompute::kFull) return bytes;
  bytes += 4 * own_rows();
  if (run.computes(KvPart::kKey) && part_.qk_norm) bytes += part_bytes(shape_.dtype);
  if (run.block == BlockWork::kCompute) bytes += rows() * 2 * part_.ffn * width + 4 * own_rows();
  if (run.attention == AttentionWork::kRead) {
    const std::int64_t columns = part_.heads * part_.head_dim;
    bytes += hidden_bytes() + (part_.qk_norm ? 3 : 2) * rows() * columns * width + 4 * rows() * part_.heads;
  }
  return bytes;
}

std::int64_t StepCounter::weight_bytes(const StageLayout& layout, int rank) const {
  const std::int64_t count =
      ParameterLayout(shape_.model, pipeline_shard(layout, rank, 0, shape_.tensor_ranks)).count();
  // f32 master and gradient; and the copy that is computed with where it is not the master.
  const std::int64_t each = 8 + (shape_.dtype == DType::kF32 ? 0 : static_cast<std::int64_t>(size_of(shape_.dtype)));
  const std::int64_t updated = (count + shape_.update_ranks - 1) / shape_.update_ranks;
  return each * count + 8 * updated;  // two moments
}

ChainCosts StepCounter::count(const ChunkChain& chain) const {
  ChainCosts costs;
  for (const Chunk& chunk : chain.chunks) {
    Flops flops;
    std::int64_t kept = 0;
    for (std::size_t i = chunk.first_run; i < chunk.end_run; ++i) {
      flops.forward += flops_[chunk.step][i].forward;
      flops.backward += flops_[chunk.step][i].backward;
      if (chunk.keeps_gradient) kept += kept_bytes(plan_.steps[chunk.step].layers[i]);
    }
    if (chunk.is_head_input) flops.backward += head_flops().total();
    costs.flops.push_back(flops);
    costs.kept_bytes.push_back(kept);
  }
  // The embedding runs once, before the first chunk that reads it; its backward after the last.
  const auto reads_embedding = [](const Chunk& chunk) { return chunk.input == kEmbedding; };
  const auto first = std::ranges::find_if(chain.chunks, reads_embedding);
  costs.flops[static_cast<std::size_t>(first - chain.chunks.begin())].forward += embedding_flops().forward;
  const auto last = std::ranges::find_if(
      chain.chunks, [&](const Chunk& chunk) { return reads_embedding(chunk) && chunk.keeps_gradient; });
  costs.flops[static_cast<std::size_t>(last - chain.chunks.begin())].backward += embedding_flops().backward;

  for (const Edge& edge : chain.edges) {
    const bool hidden = edge.kind == EdgeKind::kHidden;
    costs.bytes.push_back(edge.tensors() * (hidden ? hidden_bytes() : part_bytes(shape_.dtype)));
    costs.gradient_bytes.push_back(edge.gradient_tensors() * (hidden ? hidden_bytes() : part_bytes(DType::kF32)));
    if (hidden) continue;
    const auto keeper =
        std::ranges::find_if(edge.readers, [&](int reader) { return chain.chunks[at(reader)].keeps_gradient; });
    if (keeper != edge.readers.end()) costs.kept_bytes[at(*keeper)] += costs.bytes.back();
  }
  return costs;
}

std::int64_t StepCounter::peak_kept_bytes(const ChunkChain& chain, const ChainCosts& costs,
                                          const std::vector<ScheduleTimes::Span>& spans) const {
  std::int64_t kept = 0;
  std::int64_t peak = 0;
  for (const ScheduleTimes::Span& span : spans) {
    if (!chain.chunks[at(span.chunk)].keeps_gradient) continue;
    kept += (span.action == Action::kForward ? 1 : -1) * costs.kept_bytes[at(span.chunk)];
    peak = std::max(peak, kept);
  }
  return peak;
}

// What one layer's recomputed forward keeps while it runs backward.
std::int64_t StepCounter::recomputed_bytes(const ChunkChain& chain, int rank) const {
  if (shape_.recompute == Recompute::kNone) return 0;
  std::int64_t most = 0;
  for (const Chunk& chunk : chain.chunks) {
    if (chunk.rank != rank || !chunk.keeps_gradient) continue;
    for (std::size_t i = chunk.first_run; i < chunk.end_run; ++i) {
      most = std::max(most, kept_bytes(plan_.steps[chunk.step].layers[i], Recompute::kNone));
    }
  }
  return most;
}

// A micro-batch holds one pass of whatever K and V the rank computes or receives in passes without gradient.
std::int64_t StepCounter::key_values_in_flight(const ChunkChain& chain, int rank,
                                               const std::vector<ScheduleTimes::Span>& spans) const {
  std::set<std::pair<KvPart, int>> held;
  for (const Chunk& chunk : chain.chunks) {
    if (chunk.rank != rank || chunk.keeps_gradient) continue;
    for (std::size_t i = chunk.first_run; i < chunk.end_run; ++i) {
      const LayerRun& run = plan_.steps[chunk.step].layers[i];
      for (const KvPart part : kKvParts) {
        if (run.computes(part)) held.insert({part, run.layer});
      }
    }
  }
  for (const Edge& edge : chain.edges) {
    const bool keeps = chain.chunks[at(edge.from_chunk)].keeps_gradient;
    if (edge.kind != EdgeKind::kKeyValue || edge.to_rank != rank || keeps) continue;
    for (const KvPart part : kKvParts) {
      if (edge.carries[part]) held.insert({part, edge.source});
    }
  }
  std::map<int, std::size_t> left;  // spans, by micro-batch
  for (const ScheduleTimes::Span& span : spans) ++left[span.micro_batch];
  std::set<int> begun;
  std::size_t peak = 0;
  for (const ScheduleTimes::Span& span : spans) {
    begun.insert(span.micro_batch);
    peak = std::max(peak, begun.size());
    if (--left[span.micro_batch] == 0) begun.erase(span.micro_batch);
  }
  return static_cast<std::int64_t>(peak * held.size()) * part_bytes(shape_.dtype);
}

std::vector<RankMemory> StepCounter::memory(const StageLayout& layout, const ChunkChain& chain, const ChainCosts& costs,
                                            const ScheduleTimes& times) const {
  std::vector<RankMemory> memory;
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    const std::vector<ScheduleTimes::Span>& spans = times.spans[at(rank)];
    memory.push_back({.weights = weight_bytes(layout, rank),
                      .activations = peak_kept_bytes(chain, costs, spans) + recomputed_bytes(chain, rank),
                      .key_values = key_values_in_flight(chain, rank, spans)});
  }
  return memory;
}

}  // namespace kvloom
