// A model's weights: f32 masters in one flat buffer, and what the layers compute with.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/parameters.h"
#include "core/tensor.h"

namespace kvloom {

class Model {
 public:
  // Weights are uninitialised; `compute` is f32 or bf16 and the allocator outlives the model.
  Model(ModelConfig config, DType compute, Allocator& allocator);
  // The part that `shard` names. Throws InputError when the model cannot be cut so.
  Model(ModelConfig config, ModelShard shard, DType compute, Allocator& allocator);

  const ModelConfig& config() const { return config_; }
  const ModelShard& shard() const { return shard_; }
  DType dtype() const { return dtype_; }
  Allocator& allocator() const { return allocator_; }
  const ParameterLayout& layout() const { return layout_; }
  const ModelWeights& weights() const { return weights_; }

  // f32 [layout().count()]. Whoever changes it calls `refresh` before the next forward.
  Tensor& master() { return master_; }
  const Tensor& master() const { return master_; }
  // bf16 [layout().count()], or undefined when computing in f32. An optimizer may write it itself.
  Tensor& rounded() { return rounded_; }

  // Starting values from `seed`, refreshed.
  void initialize(std::uint64_t seed);
  // The compute copy = master, rounded; nothing to do in f32.
  void refresh();

 private:
  ModelConfig config_;
  ModelShard shard_;
  DType dtype_;
  Allocator& allocator_;
  ParameterLayout layout_;
  Tensor master_;
  Tensor rounded_;
  ModelWeights weights_;
};

// Gradients of every weight, summed in f32: one flat buffer in the layout's order, and views of it.
struct ModelGradients {
  explicit ModelGradients(const Model& model);

  Tensor flat;
  ModelWeights views;
};

}  // namespace kvloom
