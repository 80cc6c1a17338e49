#include "parallel/replica_gradients.h"

#include <algorithm>

#include "core/ops.h"

namespace kvloom {
ReplicaGradients::ReplicaGradients(const Model& model, MeshRanks& ranks, SequenceParallel sequence_parallel)
    : model_(model), ranks_(ranks), sequence_parallel_(sequence_parallel) {
  const ModelShard& shard = model.shard();
  const int copies = shard.kv_copies(model.config());
  if (copies > 1) kv_copies_ = ranks.tensor().split(shard.tensor_rank / copies, shard.tensor_rank);
  if (model.config().tied_embeddings && ranks.pipeline().size() > 1) {
    holds_tied_ = shard.embedding || shard.head;
    tied_ = ranks.pipeline().split(holds_tied_ ? 0 : 1, ranks.pipeline().rank());
  }
}

void ReplicaGradients::sum(ModelGradients& gradients) {
  for (int part = static_cast<int>(model_.config().layers); part >= kEmbeddingPart; --part) sum_part(part, gradients);
}

void ReplicaGradients::sum_part(int part, ModelGradients& gradients) {
  for (const Parameter& parameter : model_.layout().all()) {
    if (parameter.part != part || !needs_sum(parameter)) continue;
    Communicator* ranks = holders(parameter);
    if (ranks == nullptr) continue;
    Tensor gradient = gradients.flat.view(parameter.offset, parameter.shape);
    ranks->all_reduce(gradient.as<float>());
  }
}

Communicator* ReplicaGradients::holders(const Parameter& parameter) const {
  Communicator& tensor = ranks_.tensor();
  switch (parameter.copies) {
    case TensorCopies::kKeyValue:
      return kv_copies_.get();
    case TensorCopies::kHeadNorm:
    case TensorCopies::kHiddenNorm:
      return tensor.size() > 1 ? &tensor : nullptr;
    case TensorCopies::kSplit:
      return holds_tied_ && parameter.part == kEmbeddingPart ? tied_.get() : nullptr;
  }
  return nullptr;
}

bool ReplicaGradients::needs_sum(const Parameter& parameter) const {
  return parameter.copies != TensorCopies::kHiddenNorm || sequence_parallel_ == SequenceParallel::kYes;
}

bool ReplicaGradients::spread_first_copies(Model& model) {
  if (ranks_.data().size() < 3) return false;
  bool has_copies = false;
  for (const Parameter& parameter : model.layout().all()) {
    Communicator* ranks = holders(parameter);
    if (ranks == nullptr) continue;
    Tensor weight = model.master().view(parameter.offset, parameter.shape);
    ranks->broadcast(weight.as<float>(), 0);
    has_copies = true;
  }
  return has_copies;
}

double ReplicaGradients::sum_of_squares(const ModelGradients& gradients, std::int64_t begin, std::int64_t end) const {
  double sum = 0;
  for (const Parameter& parameter : model_.layout().all()) {
    if (!parameter.first_copy) continue;
    const std::int64_t first = std::max(begin, parameter.offset);
    const std::int64_t last = std::min(end, parameter.offset + element_count(parameter.shape));
    if (first >= last) continue;
    double part = 0;
    ops::run(gradients.flat.device(), SumOfSquares{gradients.flat.as<float>().data() + first, last - first, &part});
    sum += part;
  }
  return sum;
}

}  // namespace kvloom
