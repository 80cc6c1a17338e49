#include "core/shard.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvloom {

AxisPart part_of(std::int64_t size, int index, int count) { return {size * index / count, size * (index + 1) / count}; }

ModelShard ModelShard::whole(const ModelConfig& config) {
  ModelShard shard;
  shard.layers = {{0, static_cast<int>(config.layers)}};
  return shard;
}

void ModelShard::check(const ModelConfig& config) const {
  if (config.heads % tensor_size != 0) {
    reject_input("mesh.tensor: {} ranks cannot share {} heads evenly", tensor_size, config.heads);
  }
  if (config.kv_heads % tensor_size != 0 && tensor_size % config.kv_heads != 0) {
    reject_input("mesh.tensor: {} ranks and {} KV heads; one must divide the other", tensor_size, config.kv_heads);
  }
  if (config.ffn < tensor_size) reject_input("mesh.tensor: {} ranks for model.ffn {}", tensor_size, config.ffn);
  if (config.vocab < tensor_size) reject_input("mesh.tensor: {} ranks for model.vocab {}", tensor_size, config.vocab);
}

bool ModelShard::holds(int layer) const {
  return std::ranges::any_of(layers,
                             [&](const LayerRange& range) { return layer >= range.first && layer < range.end; });
}

AxisPart ModelShard::kv_heads(const ModelConfig& config) const {
  if (config.kv_heads % tensor_size == 0) return part_of(config.kv_heads, tensor_rank, tensor_size);
  const std::int64_t shared = tensor_rank * config.kv_heads / tensor_size;
  return {shared, shared + 1};
}

int ModelShard::kv_copies(const ModelConfig& config) const {
  return static_cast<int>(std::max<std::int64_t>(1, tensor_size / config.kv_heads));
}

}  // namespace kvloom
