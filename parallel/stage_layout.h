// Which rank of a pipeline holds which layers (DESIGN 6).
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvloom {

// "6,12,18", the first layer of each stage after the first, with the model's first and last boundary added. Throws
// InputError, calling the text `name`, for anything else.
std::vector<int> parse_boundaries(const std::string& text, int layers, std::string_view name);

// Contiguous ranges of layers, bottom to top, dealt to the pipeline's ranks in turn: stage v is on rank v mod ranks.
// One stage a rank, or several ("virtual stages", for interleaved schedules).
class StageLayout {
 public:
  // Stage v holds layers [boundaries[v], boundaries[v + 1]). Throws InputError with the reason unless boundaries ascend
  // strictly from 0 and make a multiple of `ranks` stages.
  StageLayout(int ranks, std::vector<int> boundaries);

  // Sizes as even as possible, the larger ones at the bottom. Throws InputError when there are fewer layers than
  // stages.
  static StageLayout even(int layers, int ranks, int stages_per_rank = 1);

  int ranks() const { return ranks_; }
  int stages() const { return static_cast<int>(boundaries_.size()) - 1; }
  int layers() const { return boundaries_.back(); }
  int first_layer(int stage) const { return boundaries_.at(static_cast<std::size_t>(stage)); }
  int end_layer(int stage) const { return boundaries_.at(static_cast<std::size_t>(stage) + 1); }
  int rank_of_stage(int stage) const { return stage % ranks_; }
  int stage_of_layer(int layer) const;
  int rank_of_layer(int layer) const { return rank_of_stage(stage_of_layer(layer)); }
  std::span<const int> boundaries() const { return boundaries_; }

  friend bool operator==(const StageLayout&, const StageLayout&) = default;

 private:
  int ranks_;
  std::vector<int> boundaries_;
};

}  // namespace kvloom
