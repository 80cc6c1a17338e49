// A model as inference holds it: every weight once, matrices packed in the format that they are computed in, norms and
// biases in f32. There are no f32 masters and no gradients; training has those (core/model.h).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/packed_weight.h"
#include "core/parameters.h"
#include "core/shard.h"
#include "core/tensor.h"
#include "proto/manifest.pb.h"

namespace kvloom {

struct InferenceFormat {
  DType compute = DType::kF32;                // of hidden states: f32 or bf16
  WeightFormat weights = WeightFormat::kF32;  // of matrices
};

// `weights` is "f32", "bf16", "int8" or "" for the one of `precision`, "f32" or "bf16". Throws InputError for others
// and for f32 weights beside bf16 hidden states, and the other way round.
InferenceFormat inference_format(const std::string& precision, const std::string& weights = {});

// One layer's weights. Those that it or the shard does not have are undefined.
struct InferenceLayer {
  Tensor attention_norm;  // f32 [hidden]
  PackedWeight query;     // [heads * head_dim, hidden]
  PackedWeight key;       // [kv_heads * head_dim, hidden]
  PackedWeight value;
  Tensor query_bias;  // f32
  Tensor key_bias;
  Tensor value_bias;
  Tensor query_norm;     // f32 [head_dim]
  Tensor key_norm;       // f32 [head_dim]
  PackedWeight output;   // [hidden, heads * head_dim]
  Tensor ffn_norm;       // f32 [hidden]
  PackedWeight gate_up;  // [2 * ffn, hidden], gate first
  PackedWeight down;     // [hidden, ffn]

  const PackedWeight& matrix(KvPart part) const { return part == KvPart::kKey ? key : value; }
  const Tensor& bias(KvPart part) const { return part == KvPart::kKey ? key_bias : value_bias; }
};

class InferenceModel {
 public:
  // Room for the part that `shard` names; weights are put by `put`. The allocator outlives the model. Throws InputError
  // when the model cannot be cut so.
  InferenceModel(ModelConfig config, ModelShard shard, InferenceFormat format, Allocator& allocator);

  // Rows [first_row, ...) of the parameter, as its layout has it = `values`, f32 or bf16 [rows, columns], or f32
  // [count] for norms and biases. Throws Error for a name that the shard does not have.
  void put(const Parameter& parameter, std::int64_t first_row, const Tensor& values);

  const ModelConfig& config() const { return config_; }
  const ModelShard& shard() const { return shard_; }
  const InferenceFormat& format() const { return format_; }
  DType dtype() const { return format_.compute; }
  Allocator& allocator() const { return allocator_; }
  const ParameterLayout& layout() const { return layout_; }

  const PackedWeight& embedding() const { return embedding_; }
  const InferenceLayer& layer(int index) const { return layers_[static_cast<std::size_t>(index)]; }
  const Tensor& final_norm() const { return final_norm_; }
  const PackedWeight& head() const { return config_.tied_embeddings ? embedding_ : head_; }

  // Of all weights, as they are held.
  std::size_t bytes() const;

 private:
  // Where a parameter's values go: rows of a packed matrix, or a vector.
  struct Place {
    PackedWeight* matrix = nullptr;
    std::int64_t first_output = 0;
    Tensor* vector = nullptr;
  };
  Place place_of(const std::string& name);
  void make_layer(int layer);

  ModelConfig config_;
  ModelShard shard_;
  InferenceFormat format_;
  Allocator& allocator_;
  ParameterLayout layout_;
  PackedWeight embedding_;
  std::vector<InferenceLayer> layers_;
  Tensor final_norm_;
  PackedWeight head_;
};

// Starting values from `seed`: those of Model::initialize, rounded to the format.
void initialize(InferenceModel& model, std::uint64_t seed);

// With its tokenizer's identity and the state that it was saved in.
struct LoadedInferenceModel {
  std::unique_ptr<InferenceModel> model;
  proto::Manifest manifest;
};

// Which part of a model this rank holds, once it is known what model it is.
using ShardOf = std::function<ModelShard(const ModelConfig&)>;

// `path` is a checkpoint, an output directory, of which the best or else the newest whole one is taken, or a Hugging
// Face folder, which is converted while it is read. Nothing but what is being packed is in memory beside the model, and
// no more of it is read than the shard. Throws InputError naming what cannot be used.
LoadedInferenceModel load_inference_model(const std::string& path, InferenceFormat format, Allocator& allocator,
                                          const ShardOf& shard_of = ModelShard::whole);

}  // namespace kvloom
