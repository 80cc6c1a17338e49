#include "core/map_runs.h"

namespace kvloom {
namespace {

double training_units(const LayerRunCount& count) {
  return static_cast<double>(count.blocks) + 2.0 * static_cast<double>(count.blocks_with_gradient);
}

}  // namespace

MapRuns runs_of_map(const KvMap& map, const Passes& passes, std::int64_t prompt) {
  return {count_layer_runs(make_iteration_plan(map, passes, PlanMode::kPrefill, prompt)),
          count_layer_runs(make_iteration_plan(map, passes, PlanMode::kTrain))};
}

double prompt_relative(const MapRuns& runs, const MapRuns& no_sharing) {
  const std::int64_t blocks = runs.prompt.blocks - runs.prompt.asked_only;
  const std::int64_t base = no_sharing.prompt.blocks - no_sharing.prompt.asked_only;
  return base > 0 ? static_cast<double>(blocks) / static_cast<double>(base) : 1.0;
}

double training_relative(const MapRuns& runs, const MapRuns& no_sharing) {
  return training_units(runs.training) / training_units(no_sharing.training);
}

}  // namespace kvloom
