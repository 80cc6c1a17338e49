#include "parallel/replica_gradients.h"

#include <algorithm>

#include "core/ops.h"

namespace kvloom {
namespace {

constexpr const char* kEmbeddingName = "model.embed_tokens.weight";

}  // namespace

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
  if (kv_copies_ != nullptr) sum_over(*kv_copies_, TensorCopies::kKeyValue, gradients);
  if (ranks_.tensor().size() > 1) {
    sum_over(ranks_.tensor(), TensorCopies::kHeadNorm, gradients);
    if (sequence_parallel_ == SequenceParallel::kYes) {
      sum_over(ranks_.tensor(), TensorCopies::kHiddenNorm, gradients);
    }
  }
  if (!holds_tied_) return;
  const Parameter& tied = model_.layout().at(kEmbeddingName);
  Tensor gradient = gradients.flat.view(tied.offset, tied.shape);
  tied_->all_reduce(gradient.as<float>());
}

void ReplicaGradients::sum_over(Communicator& ranks, TensorCopies copies, ModelGradients& gradients) {
  for (const Parameter& parameter : model_.layout().all()) {
    if (parameter.copies != copies) continue;
    Tensor gradient = gradients.flat.view(parameter.offset, parameter.shape);
    ranks.all_reduce(gradient.as<float>());
  }
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
