#include "train/mesh_config.h"

#include <charconv>
#include <string>
#include <utility>
#include <vector>

#include "kernels/error.h"

namespace kvloom {
namespace {

// "6,12,18" with the model's first and last boundary added.
std::vector<int> parse_boundaries(const std::string& text, int layers) {
  std::vector<int> boundaries = {0};
  for (const char* at = text.data(); at < text.data() + text.size(); ++at) {
    int layer = 0;
    const auto [end, error] = std::from_chars(at, text.data() + text.size(), layer);
    if (error != std::errc() || (end < text.data() + text.size() && *end != ',')) {
      reject_input("mesh.boundaries: '{}'; right is the first layer of each stage after the first, like 6,12,18", text);
    }
    boundaries.push_back(layer);
    at = end;
  }
  boundaries.push_back(layers);
  return boundaries;
}

}  // namespace

StageLayout stage_layout_of(const proto::RunConfig& config) {
  const proto::MeshConfig& mesh = config.mesh();
  const auto ranks = static_cast<int>(mesh.pipeline());
  const auto layers = static_cast<int>(config.model().layers());
  if (!mesh.boundaries().empty()) return {ranks, parse_boundaries(mesh.boundaries(), layers)};
  return StageLayout::even(layers, ranks, std::max(1, static_cast<int>(mesh.stages_per_rank())));
}

SchedulePolicy schedule_policy_of(const proto::MeshConfig& mesh) {
  return mesh.schedule() == proto::MeshConfig::GPIPE ? SchedulePolicy::kGPipe : SchedulePolicy::kOneForwardOneBackward;
}

}  // namespace kvloom
