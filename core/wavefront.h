// When the rows of a wavefront have settled (DESIGN 5): how far the K and V of upward-read sources moved in a pass.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "core/kv_map.h"
#include "kernels/ragged_attention.h"

namespace kvloom {

// The largest K and V of each source among the tokens of one sequence's block that have settled: what movement is
// relative to, together with those of the rows under way.
class BlockScale {
 public:
  // A segment of layers [first, end) begins with a block.
  void begin(int first, int end);

 private:
  friend class WavefrontPass;
  std::map<int, ByPart<float>> of_source_;
};

// One pass over one sequence's window.
class WavefrontPass {
 public:
  struct OfSource {
    int source;
    ByPart<std::vector<KvMovement>> moves;  // by row; of a part that is not measured, nothing
  };

  // The source's new K, V or both were written over those of the pass before: how each row moved; of a part that is not
  // measured, nothing. In the order of layers.
  void note(int source, const ByPart<std::span<const KvMovement>>& moves);
  std::span<const OfSource> sources() const { return sources_; }

  // All sources were noted: what follows is relative to this scale.
  void measure(const BlockScale& scale);
  // How many of the first rows have settled: those that moved by no more than `tolerance`, relative to the largest
  // value, behind others that did so too, and the one that follows them. That one, as the first row of all, has read
  // nothing but what stood still.
  std::int64_t settled(float tolerance) const;
  // How far the first `rows` rows moved at most.
  float residual(std::int64_t rows) const;
  // The first `rows` rows settle: they count for the block's scale.
  void settle(std::int64_t rows, BlockScale& scale) const;

 private:
  std::vector<OfSource> sources_;
  std::vector<float> moves_;  // by row: the most of all sources
};

}  // namespace kvloom
