#include "core/cost.h"

#include <algorithm>

#include "core/parameters.h"

namespace kvloom {
namespace {

// Pairs (query, key) that queries at [first, positions) see.
double visible_pairs(const KvMap& map, int layer, std::int64_t first, std::int64_t positions) {
  double pairs = 0;
  for (std::int64_t t = first; t < positions; ++t) {
    const std::int64_t end = map.visibility(layer) == Visibility::kUpward ? t : t + 1;
    const std::int64_t begin = map.window(layer) > 0 ? std::max<std::int64_t>(0, t + 1 - map.window(layer)) : 0;
    pairs += static_cast<double>(std::max<std::int64_t>(0, end - begin));
  }
  return pairs;
}

}  // namespace

Flops layer_run_flops(const ModelConfig& config, const LayerRun& run, std::int64_t positions, std::int64_t asked) {
  const auto query_columns = static_cast<double>(config.heads * config.head_dim);
  const auto kv_columns = static_cast<double>(config.kv_heads * config.head_dim);
  const auto hidden = static_cast<double>(config.hidden);
  const bool only_asked = run.positions == Positions::kAsked && asked > 0;
  const std::int64_t queries = only_asked ? asked : positions;
  double linear = 0;
  double attention = 0;
  for (const KvPart part : kKvParts) {
    if (run.computes(part)) linear += static_cast<double>(positions) * 2 * hidden * kv_columns;
  }
  if (run.block == BlockWork::kCompute) {
    linear += static_cast<double>(queries) * 6 * hidden * static_cast<double>(config.ffn);
  }
  if (run.attention == AttentionWork::kRead) {
    linear += static_cast<double>(queries) * 4 * hidden * query_columns;
    attention = 4 * query_columns * visible_pairs(config.kv_map, run.layer, positions - queries, positions);
  }
  return {linear + attention, 2 * linear + 2.5 * attention};
}

Flops plan_flops(const ModelConfig& config, const IterationPlan& plan, std::int64_t positions, std::int64_t asked) {
  Flops flops;
  for (const PlanStep& step : plan.steps) {
    for (const LayerRun& run : step.layers) {
      const Flops one = layer_run_flops(config, run, positions, asked);
      flops.forward += one.forward;
      if (step.keeps_gradient) flops.backward += one.backward;
    }
  }
  return flops;
}

Flops head_flops(const ModelConfig& config, std::int64_t positions, PlanMode mode) {
  const double forward =
      2 * static_cast<double>(positions) * static_cast<double>(config.hidden) * static_cast<double>(config.vocab);
  return {forward, mode == PlanMode::kTrain ? 2 * forward : 0};
}

DecodeCost decode_cost(const ModelConfig& config, DType dtype, std::int64_t sequences, std::int64_t position,
                       std::int64_t steps) {
  const auto batch = static_cast<double>(sequences);
  const auto element = static_cast<double>(size_of(dtype));
  const ParameterLayout layout(config, ModelShard::whole(config));
  DecodeCost cost;
  for (const Parameter& parameter : layout.all()) {
    const auto count = static_cast<double>(element_count(parameter.shape));
    const bool is_matrix = parameter.shape.size() == 2;
    if (parameter.part == kEmbeddingPart && !config.tied_embeddings) {
      cost.weight_bytes += batch * static_cast<double>(config.hidden) * element;
      continue;
    }
    cost.weight_bytes += count * (is_matrix ? element : static_cast<double>(size_of(DType::kF32)));
    if (is_matrix) cost.flops += 2 * batch * count;
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    const double seen =
        batch * visible_pairs(config.kv_map, layer, position, position + steps) / static_cast<double>(steps);
    cost.key_value_bytes += seen * 2 * static_cast<double>(config.kv_heads * config.head_dim) * element;
    cost.flops += seen * 4 * static_cast<double>(config.heads * config.head_dim);
  }
  return cost;
}

}  // namespace kvloom
