#include "parallel/micro_batch_run.h"

#include <algorithm>
#include <utility>

#include "core/ops.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

RunRange range_of(const Chunk& chunk) { return {chunk.step, chunk.first_run, chunk.end_run}; }

}  // namespace

LastUses::LastUses(const ChunkChain& chain, const IterationPlan& plan, const KvMap& map, int rank)
    : hidden(chain.chunks.size()), key_values(chain.chunks.size()) {
  struct Use {
    int chunk;
    bool in_backward;
  };
  std::map<int, int> last_hidden;
  std::map<KvName, Use> last_key_value;
  for (int index = 0; index < static_cast<int>(chain.chunks.size()); ++index) {
    const Chunk& chunk = chain.chunks[static_cast<std::size_t>(index)];
    if (chunk.rank != rank) continue;
    if (first_chunk < 0) first_chunk = index;
    last_chunk = index;
    last_hidden[chunk.input] = index;
    if (!chunk.is_head_input) last_hidden.try_emplace(index, index);
    if (chunk.keeps_gradient) {
      if (first_gradient_chunk < 0) first_gradient_chunk = index;
      first_gradient_reader.try_emplace(chunk.input, index);
    }
    for (std::size_t i = chunk.first_run; i < chunk.end_run; ++i) {
      const LayerRun& run = plan.steps[chunk.step].layers[i];
      for (const KvPart part : kKvParts) {
        if (run.computes(part)) last_key_value.try_emplace({part, run.layer, run.pass}, Use{index, false});
        if (run.attention == AttentionWork::kNone) continue;
        Use& use = last_key_value[{part, map.source(part, run.layer), run.read_pass[part]}];
        use = {index, use.in_backward || chunk.keeps_gradient};
      }
    }
  }
  for (const auto& [output, chunk] : last_hidden) hidden[static_cast<std::size_t>(chunk)].push_back(output);
  for (const auto& [name, use] : last_key_value) {
    if (!use.in_backward) key_values[static_cast<std::size_t>(use.chunk)].push_back(name);
  }
}

MicroBatchRun::MicroBatchRun(const Model& model, const IterationPlan& plan, const RopeTable& rope,
                             const PlanRunOptions& options, const ChunkChain& chain, const LastUses& last_uses,
                             const TokenBatch& batch)
    : chain_(chain), last_uses_(last_uses), batch_(batch), run_(model, plan, rope, options) {}

void MicroBatchRun::receive(const Edge& edge, std::vector<Tensor> tensors) {
  if (edge.kind == EdgeKind::kHidden) {
    outputs_[edge.from_chunk] = std::move(tensors[0]);
    return;
  }
  auto next = tensors.begin();
  for (const KvPart part : kKvParts) {
    if (edge.carries[part]) run_.store().put({part, edge.source, edge.pass}, std::move(*next++));
  }
}

void MicroBatchRun::receive_gradient(const Edge& edge, std::vector<Tensor> tensors) {
  if (edge.kind == EdgeKind::kHidden) {
    add_output_gradient(edge.from_chunk, std::move(tensors[0]));
    return;
  }
  auto next = tensors.begin();
  for (const KvPart part : kKvParts) {
    if (edge.gradient_reads[part] == 0) continue;
    run_.kv_gradients().add({part, edge.source, edge.pass}, *next++, edge.gradient_reads[part]);
  }
}

std::vector<Tensor> MicroBatchRun::to_send(const Edge& edge) {
  if (edge.kind == EdgeKind::kHidden) return {outputs_.at(edge.from_chunk)};
  std::vector<Tensor> tensors;
  for (const KvPart part : kKvParts) {
    if (edge.carries[part]) tensors.push_back(run_.store().at({part, edge.source, edge.pass}));
  }
  return tensors;
}

std::vector<Tensor> MicroBatchRun::gradient_to_send(const Edge& edge) {
  if (edge.kind == EdgeKind::kHidden) return {std::move(output_gradients_.extract(edge.from_chunk).mapped())};
  std::vector<Tensor> tensors;
  for (const KvPart part : kKvParts) {
    if (edge.gradient_reads[part] == 0) continue;
    tensors.push_back(run_.kv_gradients().take({part, edge.source, edge.pass}, edge.gradient_reads[part]));
  }
  return tensors;
}

void MicroBatchRun::forward(int index) {
  forget_unused();
  const Chunk& chunk = chain_.chunks[static_cast<std::size_t>(index)];
  if (chunk.input == kEmbedding && !outputs_.contains(kEmbedding)) outputs_[kEmbedding] = run_.embed(batch_.tokens);
  outputs_[index] = run_.forward_runs(range_of(chunk), outputs_.at(chunk.input));
  forgettable_ = index;
}

void MicroBatchRun::forget_unused() {
  if (forgettable_ < 0) return;
  for (const int output : last_uses_.hidden[static_cast<std::size_t>(forgettable_)]) outputs_.erase(output);
  for (const KvName& name : last_uses_.key_values[static_cast<std::size_t>(forgettable_)]) run_.store().drop(name);
  forgettable_ = -1;
}

void MicroBatchRun::add_output_gradient(int chunk, Tensor gradient) {
  const auto [place, is_new] = output_gradients_.try_emplace(chunk, gradient);
  if (!is_new) ops::add(place->second, gradient, place->second);
}

void MicroBatchRun::backward(int index, ModelGradients& gradients) {
  forget_unused();
  const Chunk& chunk = chain_.chunks[static_cast<std::size_t>(index)];
  Tensor gradient;
  if (const auto found = output_gradients_.find(index); found != output_gradients_.end()) {
    gradient = std::move(found->second);
    output_gradients_.erase(found);
  }
  outputs_.erase(index);
  add_output_gradient(chunk.input, run_.backward_runs(range_of(chunk), std::move(gradient), gradients));
  if (chunk.input == kEmbedding && last_uses_.first_gradient_reader.at(kEmbedding) == index) {
    run_.embed_backward(batch_.tokens, output_gradients_.at(kEmbedding), gradients);
    output_gradients_.erase(kEmbedding);
  }
}

void MicroBatchRun::check_finished() {
  if (run_.kv_gradients().size() == 0 && output_gradients_.empty()) return;
  fail("pipeline: a micro-batch ended with {} K/V gradients and {} gradients of hidden states that nothing took",
       run_.kv_gradients().size(), output_gradients_.size());
}

}  // namespace kvloom
