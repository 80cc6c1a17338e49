#include "launch/serving_ranks.h"

#include <fmt/format.h>

#include <cstdio>

#include "kernels/error.h"
#include "launch/at_least.h"
#include "parallel/stage_layout.h"

namespace kvloom {
namespace {

constexpr const char* kGroup = "Ranks";

void warn(const std::string& text) { fmt::print(stderr, "{}\n", text); }

std::chrono::milliseconds milliseconds_of(double seconds) {
  if (!(seconds > 0 && seconds < 1e6)) reject_input("--patience: {}; right is above 0", seconds);
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

}  // namespace

void ServingMeshOptions::add_to(CLI::App& verb) {
  verb.add_option("--tp", tensor, "Tensor-parallel ranks: they share heads and matrices")
      ->check(at_least(1))
      ->capture_default_str()
      ->group(kGroup);
  verb.add_option("--pp", pipeline, "Pipeline ranks: they hold layers one above the other")
      ->check(at_least(1))
      ->capture_default_str()
      ->group(kGroup);
  verb.add_option("--boundaries", boundaries, "First layer of each stage after the first: 6,12,18")->group(kGroup);
  verb.add_option("--patience", patience_seconds, "Seconds that a stage waits for another before all end")
      ->capture_default_str()
      ->group(kGroup);
}

ServingRanks::ServingRanks(World& world, const ServingMeshOptions& options)
    : options_(options),
      ranks_(world.communicator(), Mesh::fit(0, options.pipeline, options.tensor, world.communicator().size())) {
  milliseconds_of(options.patience_seconds);
}

std::unique_ptr<ModelPart> ServingRanks::part_of(const ModelConfig& config, Allocator& allocator) {
  const int layers = static_cast<int>(config.layers);
  const StageLayout even = StageLayout::even(layers, ranks_.mesh().pipeline);
  const std::vector<int> boundaries = options_.boundaries.empty()
                                          ? std::vector<int>(even.boundaries().begin(), even.boundaries().end())
                                          : parse_boundaries(options_.boundaries, layers, "--boundaries");
  const Patience patience{.limit = milliseconds_of(options_.patience_seconds), .warn = warn};
  return std::make_unique<ModelPart>(ranks_, boundaries, allocator, patience);
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
