// This rank's part of a model that several ranks serve, and its ties to those that hold the others.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "core/shard.h"
#include "infer/ranks/rank_loop.h"
#include "infer/ranks/stage_ranks.h"
#include "parallel/mesh_ranks.h"
#include "parallel/stage_layout.h"
#include "parallel/tensor_ranks.h"

namespace kvloom {

// The layers [boundaries[stage], boundaries[stage + 1]), with the embedding at the bottom and the head at the top.
ModelShard stage_shard(const std::vector<int>& boundaries, int stage);

class ModelPart {
 public:
  // Stage s holds layers [boundaries[s], boundaries[s + 1]). Ranks and allocator outlive this. Throws InputError when
  // there are not as many stages as the mesh has.
  // Without `patience` a rank waits as long as it takes.
  ModelPart(MeshRanks& ranks, const std::vector<int>& boundaries, Allocator& allocator,
            const std::optional<Patience>& patience = {});

  ModelShard shard() const;
  // Of one replica: all that hold parts of one model.
  EngineRanks ranks();
  // Null where one rank has all layers.
  const StageRanks* stages() const { return stages_.get(); }

 private:
  MeshRanks& mesh_;
  std::vector<int> boundaries_;
  std::unique_ptr<TensorRanks> tensor_;  // null where this rank has whole matrices
  std::unique_ptr<StageRanks> stages_;
};

}  // namespace kvloom
