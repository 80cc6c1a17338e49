#include "parallel/stage_layout.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "kernels/error.h"

namespace kvloom {

std::vector<int> parse_boundaries(const std::string& text, int layers, std::string_view name) {
  std::vector<int> boundaries = {0};
  const char* const end = text.data() + text.size();
  for (const char* at = text.data(); at <= end;) {
    int layer = 0;
    const auto [stop, error] = std::from_chars(at, end, layer);
    if (error != std::errc() || (stop != end && *stop != ',')) {
      reject_input("{}: '{}'; right is the first layer of each stage after the first, like 6,12,18", name, text);
    }
    if (layer <= boundaries.back() || layer >= layers) {
      reject_input("{}: '{}'; right are layers that ascend within 1 to {}", name, text, layers - 1);
    }
    boundaries.push_back(layer);
    at = stop + 1;
  }
  boundaries.push_back(layers);
  return boundaries;
}

StageLayout::StageLayout(int ranks, std::vector<int> boundaries) : ranks_(ranks), boundaries_(std::move(boundaries)) {
  const bool ascending = std::ranges::adjacent_find(boundaries_, std::ranges::greater_equal()) == boundaries_.end();
  if (boundaries_.size() < 2 || boundaries_.front() != 0 || !ascending) {
    reject_input("stage boundaries {}: they must ascend from 0 to the number of layers", fmt::join(boundaries_, ","));
  }
  if (ranks_ < 1 || stages() % ranks_ != 0) {
    reject_input("stage boundaries {}: {} stages; right is a multiple of {} pipeline ranks",
                 fmt::join(boundaries_, ","), stages(), ranks_);
  }
}

StageLayout StageLayout::even(int layers, int ranks, int stages_per_rank) {
  const int stages = ranks * stages_per_rank;
  if (stages < 1 || layers < stages) reject_input("{} layers do not fill {} pipeline stages", layers, stages);
  std::vector<int> boundaries = {0};
  for (int stage = 0; stage < stages; ++stage) {
    boundaries.push_back(boundaries.back() + layers / stages + (stage < layers % stages ? 1 : 0));
  }
  return {ranks, std::move(boundaries)};
}

int StageLayout::stage_of_layer(int layer) const {
  if (layer < 0 || layer >= layers()) fail("stage layout: layer {} of {}", layer, layers());
  return static_cast<int>(std::ranges::upper_bound(boundaries_, layer) - boundaries_.begin()) - 1;
}

}  // namespace kvloom
