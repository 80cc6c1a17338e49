// Weights that several ranks of one model hold: their gradients made equal on all of them and counted once, and the
// weights themselves kept equal.
#pragma once

#include <memory>

#include "core/model.h"
#include "parallel/communicator.h"
#include "parallel/mesh_ranks.h"
#include "parallel/tensor_ranks.h"

namespace kvloom {

class ReplicaGradients {
 public:
  // `model` is this rank's shard; both outlive this. Collective over `ranks.model()`.
  ReplicaGradients(const Model& model, MeshRanks& ranks, SequenceParallel sequence_parallel);

  // After backward: sums what each holder of a weight has seen of it. K and V projections over tensor ranks that share
  // KV heads; norms of heads, and with sequence parallelism all norms, over tensor ranks; tied embeddings over the
  // first and the last stage. Collective over `ranks.model()`.
  void sum(ModelGradients& gradients);
  // The same for one part of the model (Parameter::part), once its gradient is complete. Ranks that hold it call it for
  // all of them, the embedding's part last.
  void sum_part(int part, ModelGradients& gradients);

  // After an update of ranks with three or more data replicas: every copy's master weights = the first holder's; true
  // when there are copies, and then the model needs a refresh. Each holder's gradient was summed over data ranks of its
  // own, by a transport that may add in another order for each place in a buffer and each root: sums of three then
  // differ in their last bits. (Two make the same sum in any order.) Collective over `ranks.model()`.
  bool spread_first_copies(Model& model);

  // The sum of squares over the elements [begin, end) of the flat gradient, weights counted on one holder only.
  double sum_of_squares(const ModelGradients& gradients, std::int64_t begin, std::int64_t end) const;

 private:
  // The ranks that hold copies of it, the first copy's first; null: no others.
  Communicator* holders(const Parameter& parameter) const;
  // Whether each holder has seen something else of it.
  bool needs_sum(const Parameter& parameter) const;

  const Model& model_;
  MeshRanks& ranks_;
  SequenceParallel sequence_parallel_;
  std::unique_ptr<Communicator> kv_copies_;  // tensor ranks with the same KV heads; null: no others
  std::unique_ptr<Communicator> tied_;       // first and last stage; null: nothing is tied across ranks
  bool holds_tied_ = false;                  // always with tied_
};

}  // namespace kvloom
