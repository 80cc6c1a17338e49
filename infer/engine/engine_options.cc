#include "infer/engine/engine_options.h"

#include <algorithm>
#include <span>
#include <string>

#include "core/checksum.h"
#include "core/kv_pages.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::int64_t kDefaultBytes = std::int64_t{1} << 30;

// Of a sequence, rows under way at most.
std::int64_t rows_ahead(const EngineOptions& options) { return std::max(options.max_chunk, options.grid); }

// The model's shape with the KV heads of this rank alone: memory is a rank's.
ModelConfig held_by_rank(const InferenceModel& model) {
  ModelConfig config = model.config();
  config.kv_heads = model.shard().kv_heads(config).size();
  return config;
}

// The groups of sources that each stage keeps pages of.
std::vector<std::vector<ReachGroup>> groups_by_stage(const InferenceModel& model, const ModelRanks& ranks) {
  const KvMap& map = model.config().kv_map;
  if (ranks.stages == nullptr) return {reach_groups(map)};
  std::vector<std::vector<ReachGroup>> groups;
  for (int stage = 0; stage < ranks.stages->stages(); ++stage) {
    groups.push_back(reach_groups(map, sources_kept(map, ranks.stages->boundaries(), stage)));
  }
  return groups;
}

// Pages have the same numbers on every stage: as many as the stage has that can have the fewest.
KvPagesOptions pages_of(const EngineOptions& options, const InferenceModel& model, const ModelRanks& ranks) {
  const ModelConfig config = held_by_rank(model);
  KvPagesOptions pages{.format = options.kv_format,
                       .page_size = options.page_size,
                       .kv_heads = config.kv_heads,
                       .pages = {},
                       .swap_places = {},
                       .sources = std::nullopt};
  for (const std::vector<ReachGroup>& groups : groups_by_stage(model, ranks)) {
    const std::vector<std::int64_t> fitting = pages_within(config, groups, options.kv_format, options.page_size,
                                                           options.kv_bytes, options.context, rows_ahead(options));
    if (pages.pages.empty()) pages.pages = fitting;
    std::ranges::transform(pages.pages, fitting, pages.pages.begin(), std::ranges::min);
  }
  for (const std::int64_t count : pages.pages) {
    pages.swap_places.push_back(static_cast<std::int64_t>(
        static_cast<double>(count) * static_cast<double>(options.swap_bytes) / static_cast<double>(options.kv_bytes)));
  }
  if (ranks.stages != nullptr) {
    pages.sources = sources_kept(model.config().kv_map, ranks.stages->boundaries(), ranks.stages->stage());
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
  std::int64_t one = 0;
  for (const std::vector<ReachGroup>& groups : groups_by_stage(model, ranks)) {
    one = std::max(one, paged_bytes(held_by_rank(model), groups, options.kv_format, options.page_size, options.context,
                                    rows_ahead(options)));
  }
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
                              .identity = identity_of(options, model)};
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
