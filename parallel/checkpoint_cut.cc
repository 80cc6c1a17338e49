#include "parallel/checkpoint_cut.h"

#include <string>
#include <unordered_map>
#include <utility>

#include "core/parameters.h"
#include "parallel/stage_layout.h"

namespace kvloom {
namespace {

using Slices = std::unordered_map<std::string, std::vector<RankSlice>>;

ModelShard shard_of(const StageLayout& layout, int stage, int tensor_rank, int tensor_size) {
  ModelShard shard;
  shard.layers = {{layout.first_layer(stage), layout.end_layer(stage)}};
  shard.embedding = stage == 0;
  shard.head = stage + 1 == layout.stages();
  shard.tensor_rank = tensor_rank;
  shard.tensor_size = tensor_size;
  return shard;
}

// "optimizer/momentum/lm_head.weight" is cut as "lm_head.weight".
std::string parameter_of(const std::string& name) { return name.substr(name.rfind('/') + 1); }

}  // namespace

TensorCut cut_for_mesh(const ModelConfig& model, const proto::MeshConfig& mesh) {
  const int tensor = static_cast<int>(mesh.tensor());
  const StageLayout layout = StageLayout::even(static_cast<int>(model.layers), static_cast<int>(mesh.pipeline()));
  Slices slices;
  for (int stage = 0; stage < layout.stages(); ++stage) {
    for (int rank = 0; rank < tensor; ++rank) {
      const ParameterLayout held(model, shard_of(layout, stage, rank, tensor));
      for (const Parameter& parameter : held.all()) {
        if (!parameter.first_copy) continue;
        slices[parameter.name].push_back({stage * tensor + rank, {parameter.global_offset, parameter.shape}});
      }
    }
  }
  return [slices = std::move(slices)](const PlannedTensor& planned) -> std::vector<RankSlice> {
    const auto found = slices.find(parameter_of(planned.name));
    if (found != slices.end()) return found->second;
    return {{0, {Shape(planned.shape.size(), 0), planned.shape}}};
  };
}

}  // namespace kvloom
