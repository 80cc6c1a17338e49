// The inference engine on one rank or on many: which of them share a model, and this rank's place.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/inference_model.h"
#include "infer/ranks/model_part.h"
#include "parallel/mesh_ranks.h"
#include "parallel/world.h"

namespace kvloom {

struct ServingMesh {
  std::int64_t tensor = 1;
  std::int64_t pipeline = 1;
  std::string boundaries;  // "6,12"; empty: as `placement` says
  std::string placement = "auto";
  double patience_seconds = 60;                  // that a stage waits for another before all end
  std::function<void(const std::string&)> warn;  // of a stage that waits, a line
};

// A rank's part of a model, with the model's manifest.
struct LoadedPart {
  std::unique_ptr<ModelPart> part;
  LoadedInferenceModel loaded;
};

// Each `tensor` x `pipeline` ranks hold one model, a replica; the first of them leads it.
class ServingRanks {
 public:
  // Collective. The world outlives this. Throws InputError for a mesh that does not fill the world.
  ServingRanks(World& world, const ServingMesh& options);

  // This rank's part of a model, which this and the allocator outlive. Throws InputError when the model cannot be cut
  // so.
  std::unique_ptr<ModelPart> part_of(const ModelConfig& config, const InferenceFormat& format, Allocator& allocator);
  // The same, with its weights read from a checkpoint, output directory or Hugging Face folder.
  LoadedPart load(const std::string& path, const InferenceFormat& format, Allocator& allocator);

  int replicas() const { return ranks_.mesh().data; }
  int replica() const { return ranks_.place().data; }
  bool leads() const { return ranks_.place().pipeline == 0 && ranks_.place().tensor == 0; }
  // Rank 0 of the world, which alone prints.
  bool prints() const { return leads() && replica() == 0; }
  // Of leaders: one of each replica.
  Communicator& leaders() { return ranks_.data(); }
  // Within a replica: what its leader gives.
  std::int64_t from_leader(std::int64_t value);
  std::string describe() const;  // "data 1 x pipeline 2 x tensor 2", "1 rank"

 private:
  std::vector<int> boundaries_of(const ModelConfig& config, const InferenceFormat& format) const;

  ServingMesh options_;
  MeshRanks ranks_;
};

}  // namespace kvloom
