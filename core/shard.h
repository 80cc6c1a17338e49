// The part of a model that one rank holds: some of its layers, and of every matrix one of `tensor_size` parts (Shoeybi
// et al. 2019, "Megatron-LM", section 3: projections into a region by columns, out of it by rows).
#pragma once

#include <cstdint>
#include <vector>

#include "core/config.h"

namespace kvloom {

// [begin, end) of an axis.
struct AxisPart {
  std::int64_t begin;
  std::int64_t end;

  std::int64_t size() const { return end - begin; }
  friend bool operator==(const AxisPart&, const AxisPart&) = default;
};

// Part `index` of `count` parts of [0, size), as even as possible.
AxisPart part_of(std::int64_t size, int index, int count);

struct LayerRange {
  int first;
  int end;

  friend bool operator==(const LayerRange&, const LayerRange&) = default;
};

struct ModelShard {
  std::vector<LayerRange> layers;  // ascending, without overlap
  bool embedding = true;
  bool head = true;  // with the final norm
  int tensor_rank = 0;
  int tensor_size = 1;

  static ModelShard whole(const ModelConfig& config);

  // Throws InputError when the model cannot be cut into `tensor_size` parts: heads, KV heads, ffn or vocab do not fit.
  void check(const ModelConfig& config) const;

  bool holds(int layer) const;

  AxisPart heads(const ModelConfig& config) const { return part_of(config.heads, tensor_rank, tensor_size); }
  // More ranks than KV heads: neighbours hold the same one.
  AxisPart kv_heads(const ModelConfig& config) const;
  AxisPart ffn(const ModelConfig& config) const { return part_of(config.ffn, tensor_rank, tensor_size); }
  AxisPart vocab(const ModelConfig& config) const { return part_of(config.vocab, tensor_rank, tensor_size); }
  // Tensor ranks that hold the KV heads of this one: this many neighbours, of which the first is tensor_rank rounded
  // down to a multiple.
  int kv_copies(const ModelConfig& config) const;
};

}  // namespace kvloom
