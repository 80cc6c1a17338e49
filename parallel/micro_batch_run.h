// One micro-batch on one rank of a pipeline: what its chunks left for later ones and for other ranks.
#pragma once

#include <map>
#include <vector>

#include "core/plan_run.h"
#include "core/training_pass.h"
#include "parallel/chunk_chain.h"

namespace kvloom {

// When what a chunk of this rank leaves is used here for the last time: a pure function of the chain.
struct LastUses {
  LastUses(const ChunkChain& chain, const IterationPlan& plan, const KvMap& map, int rank);

  // By chunk of this rank: outputs (chunks, or kEmbedding) and K/V that nothing here needs once it has run forward.
  // What backward needs is kept until the micro-batch ends.
  std::vector<std::vector<int>> hidden;
  std::vector<std::vector<KvName>> key_values;
  int first_chunk = -1;  // of this rank, -1: none
  int last_chunk = -1;
  int first_gradient_chunk = -1;             // the last to run backward
  std::map<int, int> first_gradient_reader;  // by output: the last of this rank's chunks to add to its gradient
};

class MicroBatchRun {
 public:
  MicroBatchRun(const Model& model, const IterationPlan& plan, const RopeTable& rope, const PlanRunOptions& options,
                const ChunkChain& chain, const LastUses& last_uses, const TokenBatch& batch);

  // What came along an edge: hidden states, or what it carries of K and V, in this order; gradients back along it.
  void receive(const Edge& edge, std::vector<Tensor> tensors);
  void receive_gradient(const Edge& edge, std::vector<Tensor> tensors);
  // What goes along it, complete.
  std::vector<Tensor> to_send(const Edge& edge);
  std::vector<Tensor> gradient_to_send(const Edge& edge);

  void forward(int chunk);
  // Hidden states for the head: what the chunk that is_head_input left.
  const Tensor& head_input(int chunk) const { return outputs_.at(chunk); }
  // The gradient of a chunk's output so far; where there is none the chunk's backward starts from zero.
  void add_output_gradient(int chunk, Tensor gradient);
  void backward(int chunk, ModelGradients& gradients);

  // Throws Error when gradients are left that no source has taken.
  void check_finished();
  const LayerRunTally& tally() const { return run_.tally(); }

 private:
  void forget_unused();

  const ChunkChain& chain_;
  const LastUses& last_uses_;
  const TokenBatch& batch_;
  PlanRun run_;
  int forgettable_ = -1;           // chunk whose last uses are still held: its sends may follow it
  std::map<int, Tensor> outputs_;  // by chunk or kEmbedding
  std::map<int, Tensor> output_gradients_;
};

}  // namespace kvloom
