#include "core/stage_links.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvloom {
namespace {

bool reads(const KvMap& map, KvPart part, int source, std::span<const int> boundaries, int stage) {
  return std::ranges::any_of(map.readers(part, source),
                             [&](int reader) { return stage_of(boundaries, reader) == stage; });
}

std::string words_of(const StageKey& key) {
  switch (key.message) {
    case StageMessage::kPieces:
      return fmt::format("list of rows for layer {}", key.layer);
    case StageMessage::kHidden:
      return fmt::format("hidden states for layer {}", key.layer);
    case StageMessage::kDownward:
      return fmt::format("K/V of layer {} for layers above it", key.layer);
    case StageMessage::kUpward:
      return fmt::format("K/V of layer {} for layers below it", key.layer);
    case StageMessage::kSegmentInput:
      return fmt::format("input of the segment from layer {}", key.layer);
    case StageMessage::kGuess:
      return fmt::format("guessed K/V of layer {}", key.layer);
    case StageMessage::kOutcome:
      return "outcome";
    case StageMessage::kLogits:
      return "logits";
  }
  return "?";
}

}  // namespace

int stage_of(std::span<const int> boundaries, int layer) {
  return static_cast<int>(std::ranges::upper_bound(boundaries, layer) - boundaries.begin()) - 1;
}

std::vector<KvEdge> kv_edges(const KvMap& map, std::span<const int> boundaries) {
  std::vector<KvEdge> edges;
  for (const int source : map.kv_layers()) {
    const int from = stage_of(boundaries, source);
    for (int stage = 0; stage + 1 < std::ssize(boundaries); ++stage) {
      const bool has_key = reads(map, KvPart::kKey, source, boundaries, stage);
      const bool has_value = reads(map, KvPart::kValue, source, boundaries, stage);
      if (stage == from || (!has_key && !has_value)) continue;
      edges.push_back({.source = source, .from = from, .to = stage, .has_key = has_key, .has_value = has_value});
    }
  }
  return edges;
}

KvSources sources_kept(const KvMap& map, std::span<const int> boundaries, int stage) {
  KvSources sources;
  for (const int source : map.kv_layers()) {
    for (const KvPart part : kKvParts) {
      const bool measures = map.is_read_upward(part, source) && stage_of(boundaries, source) == stage;
      if (measures || reads(map, part, source, boundaries, stage)) sources[part].push_back(source);
    }
  }
  return sources;
}

std::string describe(const StageKey& key) {
  return fmt::format("{}, of step {}, from stage {} to stage {}", words_of(key), key.step, key.from, key.to);
}

}  // namespace kvloom
