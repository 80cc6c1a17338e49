#include "train/serving_config.h"

#include "core/config.h"
#include "core/kv_pages.h"
#include "core/shard.h"
#include "kernels/error.h"
#include "parallel/device_kind.h"
#include "parallel/stage_layout.h"
#include "train/mesh_config.h"

namespace kvloom {

ServingShape serving_shape_of(const proto::RunConfig& config) {
  ServingShape shape;
  shape.model = ModelConfig::from_proto(config.model());
  shape.stages = static_cast<int>(config.mesh().pipeline());
  shape.tensor_ranks = static_cast<int>(config.mesh().tensor());
  shape.compute = compute_dtype_of(config.train());
  shape.weights = shape.compute == DType::kF32 ? WeightFormat::kF32 : WeightFormat::kBF16;
  shape.kv_format = kv_format_of(shape.compute);
  shape.context = shape.model.context;
  ModelShard shard = ModelShard::whole(shape.model);
  shard.tensor_size = shape.tensor_ranks;
  shard.check(shape.model);
  return shape;
}

ServingSpeeds serving_speeds_of(const proto::RunConfig& config) {
  const DeviceKind& kind = device_kinds()[static_cast<std::size_t>(config.mesh().devices())];
  const Speeds speeds = speeds_of(config);
  return {.flops_per_second = speeds.flops_per_second,
          .memory_bytes_per_second = kind.memory_bytes_per_second,
          .link_bytes_per_second = speeds.link_bytes_per_second};
}

std::vector<int> serving_boundaries_of(const proto::RunConfig& config, const ServingShape& shape) {
  const proto::MeshConfig& mesh = config.mesh();
  const int layers = static_cast<int>(shape.model.layers);
  if (!mesh.boundaries().empty()) {
    std::vector<int> given = parse_boundaries(mesh.boundaries(), layers, "--boundaries");
    if (std::ssize(given) == shape.stages + 1) return given;
    reject_input("--boundaries: '{}' makes {} stages; right are {}", mesh.boundaries(), given.size() - 1, shape.stages);
  }
  if (mesh.placement() == proto::MeshConfig::EVEN) {
    const StageLayout even = StageLayout::even(layers, shape.stages);
    return {even.boundaries().begin(), even.boundaries().end()};
  }
  return place_served_stages(shape, serving_speeds_of(config), kTypicalBatch, shape.context / 2);
}

}  // namespace kvloom
