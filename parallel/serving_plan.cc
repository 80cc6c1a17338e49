#include "parallel/serving_plan.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/cost.h"
#include "core/parameters.h"
#include "kernels/error.h"
#include "parallel/stage_layout.h"

namespace kvloom {
namespace {

// The last tensor rank's part: none is larger.
ModelShard shard_of(const ServingShape& shape, LayerRange layers) {
  ModelShard shard;
  shard.layers = {layers};
  shard.embedding = layers.first == 0;
  shard.head = layers.end == static_cast<int>(shape.model.layers);
  shard.tensor_size = shape.tensor_ranks;
  shard.tensor_rank = shape.tensor_ranks - 1;
  return shard;
}

ModelConfig held_by_rank(const ServingShape& shape) {
  ModelConfig config = shape.model;
  config.kv_heads = shard_of(shape, {0, static_cast<int>(config.layers)}).kv_heads(config).size();
  return config;
}

std::vector<ReachGroup> groups_of(const ServingShape& shape, std::span<const int> boundaries, int stage) {
  return reach_groups(shape.model.kv_map, sources_kept(shape.model.kv_map, boundaries, stage));
}

int stages_of(std::span<const int> boundaries) { return static_cast<int>(boundaries.size()) - 1; }

void count_weights(const ServingShape& shape, ServedStage& stage) {
  const bool tied = shape.model.tied_embeddings;
  const ParameterLayout layout(shape.model, shard_of(shape, stage.layers));
  for (const Parameter& parameter : layout.all()) {
    const bool is_matrix = parameter.shape.size() == 2;
    const bool is_table = parameter.part == kEmbeddingPart && !tied;
    // A table is looked up, not multiplied, and never rounded to int8.
    const auto looked_up = static_cast<std::int64_t>(size_of(shape.compute));
    const std::int64_t element = !is_matrix ? 4 : is_table ? looked_up : bytes_of(shape.weights);
    const std::int64_t count = element_count(parameter.shape);
    stage.weight_bytes += count * element;
    const bool is_read = !is_table && (parameter.part != kEmbeddingPart || shard_of(shape, stage.layers).head);
    if (is_read) stage.read_weight_bytes += static_cast<double>(count) * static_cast<double>(element);
    if (is_matrix && is_read) stage.flops_per_token += 2.0 * static_cast<double>(count);
  }
}

ServedStage stage_at(const ServingShape& shape, std::span<const int> boundaries, int index) {
  const auto at = static_cast<std::size_t>(index);
  const ModelConfig held = held_by_rank(shape);
  ServedStage stage{.layers = {boundaries[at], boundaries[at + 1]}};
  count_weights(shape, stage);
  for (const ReachGroup& group : groups_of(shape, boundaries, index)) {
    stage.kv_bytes_per_token += kv_bytes_per_position(group, shape.kv_format, held.kv_heads, held.head_dim);
  }
  const auto layers = static_cast<double>(stage.layers.end - stage.layers.first);
  stage.read_kv_bytes = 2.0 * layers * static_cast<double>(kv_row_bytes(shape.kv_format, held.kv_heads, held.head_dim));
  stage.attention_flops = 4.0 * layers * static_cast<double>(shape.model.heads * held.head_dim / shape.tensor_ranks);
  for (const KvEdge& edge : kv_edges(shape.model.kv_map, boundaries)) {
    const std::int64_t bytes = bytes_per_token(shape, edge) / shape.tensor_ranks;
    if (edge.from == index) stage.sent_bytes += bytes;
    if (edge.to == index) stage.received_bytes += static_cast<double>(bytes);
  }
  const std::int64_t hidden = shape.model.hidden * static_cast<std::int64_t>(size_of(shape.compute));
  if (index > 0) stage.received_bytes += static_cast<double>(hidden);
  if (index + 1 < stages_of(boundaries)) stage.sent_bytes += hidden;
  return stage;
}

double seconds_of(const ServedStage& stage, const ServingSpeeds& speeds, std::int64_t sequences,
                  std::int64_t positions) {
  const double computing = std::max(stage.step_bytes(sequences, positions) / speeds.memory_bytes_per_second,
                                    stage.step_flops(sequences, positions) / speeds.flops_per_second);
  const double link = speeds.link_bytes_per_second;
  return computing + (link > 0 ? static_cast<double>(sequences) * stage.received_bytes / link : 0.0);
}

// Every way to cut the layers into stages, one after the other.
class Cuts {
 public:
  Cuts(int layers, int stages) : layers_(layers), stages_(stages) {}

  template <typename Visit>
  void each(const Visit& visit) {
    std::vector<int> cut = {0};
    extend(cut, visit);
  }

 private:
  template <typename Visit>
  void extend(std::vector<int>& cut, const Visit& visit) {
    const int left = stages_ - static_cast<int>(cut.size());
    if (left == 0) {
      cut.push_back(layers_);
      visit(cut);
      cut.pop_back();
      return;
    }
    for (int next = cut.back() + 1; next + left <= layers_; ++next) {
      cut.push_back(next);
      extend(cut, visit);
      cut.pop_back();
    }
  }

  int layers_;
  int stages_;
};

std::vector<int> even_boundaries(const ServingShape& shape) {
  const StageLayout even = StageLayout::even(static_cast<int>(shape.model.layers), shape.stages);
  return {even.boundaries().begin(), even.boundaries().end()};
}

// How many ways there are to cut the layers; as a double, since it may be past 64 bits.
double ways(int layers, int stages) {
  double count = 1;
  for (int cut = 1; cut < stages; ++cut) count = count * (layers - cut) / cut;
  return count;
}

}  // namespace

std::int64_t bytes_per_token(const ServingShape& shape, const KvEdge& edge) {
  const ModelConfig held = held_by_rank(shape);
  const std::int64_t parts = (edge.has_key ? 1 : 0) + (edge.has_value ? 1 : 0);
  return parts * shape.tensor_ranks * held.kv_heads * held.head_dim * static_cast<std::int64_t>(size_of(shape.compute));
}

StageBytes bytes_per_token(const ServingShape& shape, std::span<const int> boundaries) {
  const std::int64_t stages = stages_of(boundaries);
  if (stages == 1) return {};
  StageBytes bytes{.hidden = (stages - 1) * shape.tensor_ranks * shape.model.hidden *
                             static_cast<std::int64_t>(size_of(shape.compute)),
                   .logits = shape.model.vocab * 4};
  for (const KvEdge& edge : kv_edges(shape.model.kv_map, boundaries)) {
    (edge.is_upward() ? bytes.upward : bytes.downward) += bytes_per_token(shape, edge);
  }
  return bytes;
}

std::vector<std::int64_t> pages_of_stages(const ServingShape& shape, std::span<const int> boundaries,
                                          std::int64_t kv_bytes) {
  const ModelConfig config = held_by_rank(shape);
  std::vector<std::int64_t> pages;
  for (int stage = 0; stage < stages_of(boundaries); ++stage) {
    const std::vector<std::int64_t> fitting = pages_within(config, groups_of(shape, boundaries, stage), shape.kv_format,
                                                           shape.page_size, kv_bytes, shape.context, shape.rows_ahead);
    if (pages.empty()) pages = fitting;
    std::ranges::transform(pages, fitting, pages.begin(), std::ranges::min);
  }
  return pages;
}

std::int64_t sequence_bytes(const ServingShape& shape, std::span<const int> boundaries) {
  std::int64_t most = 0;
  for (int stage = 0; stage < stages_of(boundaries); ++stage) {
    most = std::max(most, paged_bytes(held_by_rank(shape), groups_of(shape, boundaries, stage), shape.kv_format,
                                      shape.page_size, shape.context, shape.rows_ahead));
  }
  return most;
}

std::int64_t sequences_within(const ServingShape& shape, std::span<const std::int64_t> pages) {
  std::int64_t most = std::numeric_limits<std::int64_t>::max();
  const std::vector<ReachGroup> groups = reach_groups(shape.model.kv_map);
  for (std::size_t group = 0; group < groups.size(); ++group) {
    most = std::min(most,
                    pages[group] / pages_of_sequence(groups[group], shape.page_size, shape.context, shape.rows_ahead));
  }
  return most;
}

double ServedStage::step_bytes(std::int64_t sequences, std::int64_t positions) const {
  return read_weight_bytes + static_cast<double>(sequences) * static_cast<double>(positions) * read_kv_bytes;
}

double ServedStage::step_flops(std::int64_t sequences, std::int64_t positions) const {
  return static_cast<double>(sequences) * (flops_per_token + static_cast<double>(positions) * attention_flops);
}

std::vector<ServedStage> served_stages(const ServingShape& shape, std::span<const int> boundaries) {
  std::vector<ServedStage> stages;
  for (int stage = 0; stage < stages_of(boundaries); ++stage) stages.push_back(stage_at(shape, boundaries, stage));
  return stages;
}

double step_seconds(const ServingShape& shape, const ServingSpeeds& speeds, std::span<const int> boundaries,
                    std::int64_t sequences, std::int64_t positions) {
  double most = 0;
  for (const ServedStage& stage : served_stages(shape, boundaries)) {
    most = std::max(most, seconds_of(stage, speeds, sequences, positions));
  }
  return most;
}

double tokens_per_second(const ServingShape& shape, const ServingSpeeds& speeds, std::span<const int> boundaries,
                         std::int64_t sequences, std::int64_t positions) {
  const std::int64_t stages = stages_of(boundaries);
  const std::int64_t groups = std::min(stages, sequences);
  const std::int64_t of_group = (sequences + groups - 1) / groups;
  // A round of all sequences: as many steps as groups, of which the slowest stage does one after the other, or, with
  // fewer groups than stages, one step through all of them.
  const std::vector<ServedStage> all = served_stages(shape, boundaries);
  double slowest = 0;
  double through = 0;
  for (const ServedStage& stage : all) {
    const double seconds = seconds_of(stage, speeds, of_group, positions);
    slowest = std::max(slowest, seconds);
    through += seconds;
  }
  return static_cast<double>(sequences) / std::max(static_cast<double>(groups) * slowest, through);
}

double first_token_seconds(const ServingShape& shape, const ServingSpeeds& speeds, std::span<const int> boundaries,
                           std::int64_t prompt, double passes_per_token) {
  double seconds = 0;
  const KvMap& map = shape.model.kv_map;
  const std::vector<Segment> segments = segments_of(map);
  for (const ServedStage& stage : served_stages(shape, boundaries)) {
    double layer_passes = 0;
    for (int layer = stage.layers.first; layer < stage.layers.end; ++layer) {
      const auto segment = std::ranges::find_if(segments, [&](const Segment& of) { return layer <= of.last; });
      if (layer <= map.last_kv_layer()) layer_passes += segment->iterated ? passes_per_token : 1;
    }
    const double passes = layer_passes / static_cast<double>(stage.layers.end - stage.layers.first);
    const auto rows = static_cast<double>(prompt);
    const double flops = rows * passes * (stage.flops_per_token + rows / 2 * stage.attention_flops);
    seconds += std::max(flops / speeds.flops_per_second, stage.read_weight_bytes / speeds.memory_bytes_per_second);
    if (speeds.link_bytes_per_second > 0)
      seconds += rows * passes * stage.received_bytes / speeds.link_bytes_per_second;
  }
  return seconds;
}

std::vector<int> place_served_stages(const ServingShape& shape, const ServingSpeeds& speeds, std::int64_t sequences,
                                     std::int64_t positions) {
  constexpr double kMostCuts = 20000;
  const int layers = static_cast<int>(shape.model.layers);
  std::vector<int> best = even_boundaries(shape);
  const auto cost_of = [&](const std::vector<int>& cut) {
    return std::pair(step_seconds(shape, speeds, cut, sequences, positions), bytes_per_token(shape, cut).total());
  };
  auto least = cost_of(best);
  const auto consider = [&](const std::vector<int>& cut) {
    const auto cost = cost_of(cut);
    if (cost >= least) return false;
    least = cost;
    best = cut;
    return true;
  };
  if (ways(layers, shape.stages) <= kMostCuts) {
    Cuts(layers, shape.stages).each(consider);
    return best;
  }
  // Moves of one boundary by one layer, until none helps.
  for (bool has_moved = true; has_moved;) {
    has_moved = false;
    for (std::size_t boundary = 1; boundary + 1 < best.size(); ++boundary) {
      for (const int by : {-1, 1}) {
        std::vector<int> cut = best;
        cut[boundary] += by;
        if (cut[boundary] <= cut[boundary - 1] || cut[boundary] >= cut[boundary + 1]) continue;
        has_moved |= consider(cut);
      }
    }
  }
  return best;
}

}  // namespace kvloom
