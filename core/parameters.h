// The weights of a model: their names, shapes and places in one flat buffer, their starting values, and typed views.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/config.h"
#include "core/shard.h"
#include "core/tensor.h"

namespace kvloom {

enum class Decay : std::uint8_t { kYes, kNo };  // whether weight decay applies: not to norms and biases

// Which tensor ranks hold a parameter, and what each one's gradient is.
enum class TensorCopies : std::uint8_t {
  kSplit,       // each rank has another part
  kKeyValue,    // split by KV heads; ranks that hold the same ones sum their gradients
  kHeadNorm,    // all hold it, each sees its own heads: gradients are summed
  kHiddenNorm,  // all hold it; each sees every row, or its own rows with sequence parallelism: then gradients are
                // summed
};

// What a parameter belongs to: a layer, by number; the embedding; or final norm and head, numbered as one layer more.
inline constexpr int kEmbeddingPart = -1;

struct Parameter {
  std::string name;     // Hugging Face's: "model.layers.3.self_attn.q_proj.weight"
  int part;             // tied embeddings are the embedding's
  Shape shape;          // of the part held here
  std::int64_t offset;  // in elements, in the flat buffer
  Shape global_shape;   // of the whole parameter
  Shape global_offset;  // of this part in it
  TensorCopies copies;
  bool first_copy;  // of the shards that hold this part, this one counts it in norms and writes it
  Decay decay;
  float mean;    // of the starting values
  float stddev;  // 0: all `mean`
};

// Every parameter that a shard holds, in the order of the flat buffer, without gaps. Layers whose K nobody reads have
// no k_proj, those whose V nobody reads no v_proj; where there are both, they follow q_proj, so that one product
// computes all three. gate_proj and up_proj of a layer are neighbours, so that one product computes both. Tied
// embeddings are one parameter, held by a shard with the embedding, the head, or both.
class ParameterLayout {
 public:
  ParameterLayout(const ModelConfig& config, const ModelShard& shard);

  std::span<const Parameter> all() const { return parameters_; }
  std::int64_t count() const { return count_; }
  // Throws Error naming the parameter when there is none.
  const Parameter& at(std::string_view name) const;
  bool contains(std::string_view name) const { return index_.contains(std::string(name)); }

 private:
  struct Builder;

  std::vector<Parameter> parameters_;
  std::unordered_map<std::string, std::size_t> index_;
  std::int64_t count_ = 0;
};

// Views of one layer's weights, or of their gradients. Those that the layer or the shard does not have are undefined.
// Heads, kv_heads, ffn and vocab are those of the shard.
struct LayerWeights {
  Tensor attention_norm;  // f32 [hidden]
  Tensor query;           // [heads * head_dim, hidden]
  Tensor key;             // [kv_heads * head_dim, hidden]
  Tensor value;           // [kv_heads * head_dim, hidden]
  // Of a layer with both K and V, the three above as one matrix, and its three biases as one vector: they are
  // neighbours.
  Tensor query_key_value;       // [(heads + 2 kv_heads) * head_dim, hidden]
  Tensor query_key_value_bias;  // f32 [(heads + 2 kv_heads) * head_dim]
  Tensor query_bias;            // f32 [heads * head_dim]
  Tensor key_bias;              // f32 [kv_heads * head_dim]
  Tensor value_bias;            // f32 [kv_heads * head_dim]
  Tensor query_norm;            // f32 [head_dim]
  Tensor key_norm;              // f32 [head_dim]
  Tensor output;                // [hidden, heads * head_dim]
  Tensor ffn_norm;              // f32 [hidden]
  Tensor gate_up;               // [2 * ffn, hidden], gate first
  Tensor down;                  // [hidden, ffn]
};

struct ModelWeights {
  Tensor embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  Tensor final_norm;  // f32 [hidden]
  Tensor head;        // [vocab, hidden]; the embedding itself when tied
};

// Views into flat buffers laid out by `layout`: matrices from `matrices` (any dtype), norms and biases from `vectors`
// (f32). For gradients both are the same f32 buffer.
ModelWeights view_weights(const ModelConfig& config, const ParameterLayout& layout, const Tensor& matrices,
                          const Tensor& vectors);

// values (=) [rows, columns] f32, for a vector [rows]: starting values of rows [first_row, ...) of the part held here.
// Each is a function of (seed, name, element of the whole parameter) only, whatever the shard. Matrices are normal with
// the config's initializer_range, those that write to the residual stream divided by sqrt(2 layers) (GPT-2,
// section 2.3).
void fill_starting_values(const Parameter& parameter, std::uint64_t seed, std::int64_t first_row,
                          std::span<float> values);

// master [count] f32 = starting values of every parameter.
void initialize_parameters(const ParameterLayout& layout, std::uint64_t seed, Tensor& master);

}  // namespace kvloom
