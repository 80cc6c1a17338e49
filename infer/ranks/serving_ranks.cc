#include "infer/ranks/serving_ranks.h"

#include <fmt/format.h>

#include "kernels/error.h"
#include "parallel/device_kind.h"
#include "parallel/serving_plan.h"
#include "parallel/stage_layout.h"

namespace kvloom {
namespace {

std::chrono::milliseconds milliseconds_of(double seconds) {
  if (!(seconds > 0 && seconds < 1e6)) reject_input("--patience: {}; right is above 0", seconds);
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

}  // namespace

ServingRanks::ServingRanks(World& world, const ServingMesh& options)
    : options_(options),
      ranks_(world.communicator(), Mesh::fit(0, options.pipeline, options.tensor, world.communicator().size())) {
  milliseconds_of(options.patience_seconds);
}

std::unique_ptr<ModelPart> ServingRanks::part_of(const ModelConfig& config, const InferenceFormat& format,
                                                 Allocator& allocator) {
  const Patience patience{.limit = milliseconds_of(options_.patience_seconds), .warn = options_.warn};
  return std::make_unique<ModelPart>(ranks_, boundaries_of(config, format), allocator, patience);
}

LoadedPart ServingRanks::load(const std::string& path, const InferenceFormat& format, Allocator& allocator) {
  std::unique_ptr<ModelPart> part;
  LoadedInferenceModel loaded = load_inference_model(path, format, allocator, [&](const ModelConfig& config) {
    part = part_of(config, format, allocator);
    return part->shard();
  });
  return {std::move(part), std::move(loaded)};
}

// The same on every rank.
std::vector<int> ServingRanks::boundaries_of(const ModelConfig& config, const InferenceFormat& format) const {
  const int layers = static_cast<int>(config.layers);
  if (!options_.boundaries.empty()) return parse_boundaries(options_.boundaries, layers, "--boundaries");
  const int stages = ranks_.mesh().pipeline;
  if (options_.placement == "even") {
    const StageLayout even = StageLayout::even(layers, stages);
    return {even.boundaries().begin(), even.boundaries().end()};
  }
  const DeviceKind& cpu = device_kinds().front();
  const Speeds speeds = cpu.speeds(format.compute);
  return place_served_stages({.model = config,
                              .stages = stages,
                              .tensor_ranks = ranks_.mesh().tensor,
                              .compute = format.compute,
                              .weights = format.weights,
                              .kv_format = kv_format_of(format.compute),
                              .context = config.context},
                             {.flops_per_second = speeds.flops_per_second,
                              .memory_bytes_per_second = cpu.memory_bytes_per_second,
                              .link_bytes_per_second = speeds.link_bytes_per_second},
                             kTypicalBatch, config.context / 2);
}

std::int64_t ServingRanks::from_leader(std::int64_t value) {
  std::vector<std::int64_t> values = {value};
  ranks_.model().broadcast(std::span(values), 0);
  return values.front();
}

std::string ServingRanks::describe() const {
  const Mesh& mesh = ranks_.mesh();
  if (mesh.size() == 1) return "1 rank";
  return fmt::format("data {} x pipeline {} x tensor {}", mesh.data, mesh.pipeline, mesh.tensor);
}

}  // namespace kvloom
