#include "infer/engine/engine_options.h"

#include <algorithm>
#include <span>
#include <string>

#include "core/checksum.h"
#include "core/kv_pages.h"
#include "kernels/error.h"
#include "parallel/serving_plan.h"

namespace kvloom {
namespace {

constexpr std::int64_t kDefaultBytes = std::int64_t{1} << 30;

// Of a sequence, rows under way at most.
std::int64_t rows_ahead(const EngineOptions& options) { return std::max(options.max_chunk, options.grid); }

std::vector<int> boundaries_of(const InferenceModel& model, const ModelRanks& ranks) {
  if (ranks.stages == nullptr) return {0, static_cast<int>(model.config().layers)};
  return {ranks.stages->boundaries().begin(), ranks.stages->boundaries().end()};
}

ServingShape shape_of(const EngineOptions& options, const InferenceModel& model, const ModelRanks& ranks) {
  return {.model = model.config(),
          .stages = ranks.stages == nullptr ? 1 : ranks.stages->stages(),
          .tensor_ranks = model.shard().tensor_size,
          .compute = model.dtype(),
          .weights = model.format().weights,
          .kv_format = options.kv_format,
          .page_size = options.page_size,
          .context = options.context,
          .rows_ahead = rows_ahead(options)};
}

KvPagesOptions pages_of(const EngineOptions& options, const InferenceModel& model, const ModelRanks& ranks) {
  const std::vector<int> boundaries = boundaries_of(model, ranks);
  KvPagesOptions pages{
      .format = options.kv_format,
      .page_size = options.page_size,
      .kv_heads = model.shard().kv_heads(model.config()).size(),
      .pages = pages_of_stages(shape_of(options, model, ranks), boundaries, options.kv_bytes),
      .swap_places = {},
      .sources = sources_kept(model.config().kv_map, boundaries, ranks.stages == nullptr ? 0 : ranks.stages->stage())};
  for (const std::int64_t count : pages.pages) {
    pages.swap_places.push_back(static_cast<std::int64_t>(
        static_cast<double>(count) * static_cast<double>(options.swap_bytes) / static_cast<double>(options.kv_bytes)));
  }
  return pages;
}

// Where chains of page keys start: whatever makes K and V of equal tokens differ.
PageKey identity_of(const EngineOptions& options, const InferenceModel& model) {
  const std::string text =
      fmt::format("{} {} {} {} {} {} {} {} {}", model.config().to_proto().SerializeAsString(), name_of(model.dtype()),
                  static_cast<int>(model.format().weights), name_of(options.kv_format), static_cast<int>(options.guess),
                  options.tolerance, options.window, options.grid, options.prefill_passes);
  return {.high = checksum(std::as_bytes(std::span(text))), .low = 0};
}

}  // namespace

EngineOptions completed(EngineOptions options, const InferenceModel& model, const ModelRanks& ranks) {
  const ModelConfig& config = model.config();
  if (options.context < 0 || options.context > config.context) {
    reject_input("engine: a context of {}; right is up to the model's {}", options.context, config.context);
  }
  if (options.context == 0) options.context = config.context;
  if (!(options.tolerance >= 0)) reject_input("engine: tolerance {}; right is 0 or more", options.tolerance);
  if (ranks.stages == nullptr) options.steps_under_way = 1;
  if (options.steps_under_way == 0) options.steps_under_way = ranks.stages->stages();
  const std::int64_t one = sequence_bytes(shape_of(options, model, ranks), boundaries_of(model, ranks));
  if (options.kv_bytes == 0) {
    options.kv_bytes = std::max(2 * one, std::min(kDefaultBytes, options.max_sequences * one));
  }
  return options;
}

SchedulerOptions scheduling_of(const EngineOptions& options, const InferenceModel& model, const KvPagesOptions& pages) {
  SchedulerOptions scheduling{.groups = {},
                              .page_size = options.page_size,
                              .max_sequences = options.max_sequences,
                              .budget = options.budget,
                              .max_chunk = options.max_chunk,
                              .window = options.window,
                              .grid = options.grid,
                              .prefill_passes = options.prefill_passes,
                              .prefix_cache = options.prefix_cache,
                              .reuse_generated = options.reuse_generated,
                              .identity = identity_of(options, model),
                              .steps_under_way = options.steps_under_way};
  const std::vector<ReachGroup> groups = reach_groups(model.config().kv_map);
  for (std::size_t group = 0; group < groups.size(); ++group) {
    scheduling.groups.push_back({groups[group].reach, pages.pages[group], pages.swap_places[group]});
  }
  return scheduling;
}

RunnerOptions running_of(const EngineOptions& options, const InferenceModel& model, const ModelRanks& ranks) {
  return {.pages = pages_of(options, model, ranks),
          .forward = {.tolerance = options.tolerance,
                      .guess = options.guess,
                      .context = options.context,
                      .tensor = ranks.tensor,
                      .stages = ranks.stages,
                      .block = options.grid},
          .slots = options.max_sequences};
}

}  // namespace kvloom
