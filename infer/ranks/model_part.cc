#include "infer/ranks/model_part.h"

namespace kvloom {

ModelShard stage_shard(const std::vector<int>& boundaries, int stage) {
  const auto index = static_cast<std::size_t>(stage);
  ModelShard shard;
  shard.layers = {{boundaries[index], boundaries[index + 1]}};
  shard.embedding = stage == 0;
  shard.head = index + 2 == boundaries.size();
  return shard;
}

ModelPart::ModelPart(MeshRanks& ranks, const std::vector<int>& boundaries, Allocator& allocator,
                     const std::optional<Patience>& patience)
    : mesh_(ranks), boundaries_(boundaries) {
  // Refuses boundaries that do not ascend from 0.
  const StageLayout layout(ranks.mesh().pipeline, boundaries);
  if (ranks.mesh().tensor > 1) {
    std::optional<std::chrono::milliseconds> limit;
    // Another tensor rank may itself wait for a stage, which then speaks first.
    if (patience.has_value()) limit = patience->limit + patience->limit * (layout.stages() + 1) / 5;
    tensor_ = std::make_unique<TensorRanks>(ranks.tensor(), SequenceParallel::kNo, allocator, limit);
  }
  if (layout.stages() == 1) return;
  stages_ = std::make_unique<StageRanks>(ranks.pipeline(), boundaries, allocator, patience.value_or(Patience{}));
}

ModelShard ModelPart::shard() const {
  ModelShard shard = stage_shard(boundaries_, mesh_.place().pipeline);
  shard.tensor_rank = mesh_.place().tensor;
  shard.tensor_size = mesh_.mesh().tensor;
  return shard;
}

EngineRanks ModelPart::ranks() {
  const bool is_alone = mesh_.mesh().pipeline * mesh_.mesh().tensor == 1;
  return {.all = is_alone ? nullptr : &mesh_.model(), .model = {.tensor = tensor_.get(), .stages = stages_.get()}};
}

}  // namespace kvloom
