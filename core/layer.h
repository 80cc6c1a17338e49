// One decoder block (DESIGN 4), in the pieces that training, prefill and decode put together differently: keys and
// values, and the block that reads them. Forward here and in layer.cc; the hand-written backward in layer_backward.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/config.h"
#include "core/kv_store.h"
#include "core/ops.h"
#include "core/parameters.h"
#include "core/rope_table.h"
#include "core/shard.h"
#include "core/tensor.h"
#include "core/tensor_group.h"

namespace kvloom {

// What every layer of a run shares. A hidden state's row r is position first_position + r % positions of sequence
// r / positions, later by starts[r / positions] where there are starts (forward only). Between regions there are
// `own_rows()` of them, inside (normed input, heads, feed-forward) all `rows()`; heads, kv_heads and ffn are those of
// the shard.
struct LayerContext {
  const ModelConfig& config;
  const ModelShard& shard;
  const RopeTable& rope;
  Allocator& allocator;
  DType dtype;
  std::int64_t sequences;
  std::int64_t positions;
  std::int64_t first_position = 0;
  TensorGroup* tensor = nullptr;   // null: this rank has whole matrices
  const Tensor* starts = nullptr;  // i32 [sequences], where the hidden states are: ops::RowPositions

  std::int64_t rows() const { return sequences * positions; }
  std::int64_t own_rows() const { return tensor == nullptr ? rows() : tensor->own_rows(rows()); }
  ops::RowPositions row_positions() const { return {positions, first_position, starts}; }
  std::int64_t heads() const { return shard.heads(config).size(); }
  std::int64_t kv_heads() const { return shard.kv_heads(config).size(); }
};

// What the backward of one layer run needs of its forward. With `recompute: FULL` only `input` is kept.
struct LayerActivations {
  Tensor input;                  // [own_rows, hidden]
  Tensor attention_inverse_rms;  // f32 [own_rows]
  Tensor query_raw;              // before query_norm; with qk_norm only
  Tensor query_inverse_rms;
  Tensor query;  // rotated [rows, heads * head_dim]
  Tensor key_raw;
  Tensor key_inverse_rms;
  Tensor attention;        // [rows, heads * head_dim]; undefined when nothing was read
  Tensor log_sum_exp;      // f32 [rows, heads]
  Tensor middle;           // [own_rows, hidden], between attention and feed-forward
  Tensor ffn_inverse_rms;  // f32 [own_rows]
  Tensor gate_up;          // [rows, 2 * ffn]
};

// K and V as a reader sees them, of one source or of two: the first `keys` of [sequences, capacity, kv_heads *
// head_dim], or as many fewer as are visible from where its queries stand.
struct KvRead {
  KeyValue source;
  std::int64_t keys;
};

// RMSNorm of `input` before attention, all rows of it; keeps `input` and its inverse RMS in `kept` when there is one.
Tensor layer_attention_norm(const LayerContext& context, const LayerWeights& weights, const Tensor& input,
                            LayerActivations* kept);

// K (rotated), or V, of a layer that owns it, [sequences, positions, kv_heads * head_dim].
Tensor layer_key_value(const LayerContext& context, const LayerWeights& weights, KvPart part, const Tensor& normed,
                       LayerActivations* kept);

// The layer's query (rotated) [rows, heads * head_dim], and what it owns of K (rotated) and V, of the same rows,
// written into `cache` at their positions. What decoding does in place of layer_key_value and the query of layer_block:
// for K and V one product where no norm stands in between, and one pass over its result.
Tensor layer_query(const LayerContext& context, const LayerWeights& weights, const Tensor& normed, KeyValue& cache);

// layer_block from its query on; nothing is kept.
Tensor layer_block_from_query(const LayerContext& context, int layer, const LayerWeights& weights, const Tensor& input,
                              const Tensor& query, const KvRead& read);

// Attention over `read` (none: its output is zero), residual, feed-forward, residual: the layer's output, a new tensor.
Tensor layer_block(const LayerContext& context, int layer, const LayerWeights& weights, const Tensor& input,
                   const Tensor& normed, const std::optional<KvRead>& read, LayerActivations* kept);

// dK, dV sums that a reader adds to: both, or neither when what it read are constants.
using KvGradientSums = std::optional<KeyValue>;

// layer_attention_norm's result again, from what was kept: cheaper to compute than to keep.
Tensor layer_normed_input(const LayerContext& context, const LayerWeights& weights, const LayerActivations& kept);

// Weight and bias gradients of a layer's projections, put off until the gradient of their input is on its way to other
// ranks.
class LateWeightGradients {
 public:
  // ops::linear_grad_weight, later.
  void add(const Tensor& grad_output, const Tensor& input, const Tensor& grad_weight, const Tensor& grad_bias) {
    products_.push_back({grad_output, input, grad_weight, grad_bias});
  }
  void compute();

 private:
  struct Product {
    Tensor grad_output;
    Tensor input;
    Tensor grad_weight;
    Tensor grad_bias;
  };
  std::vector<Product> products_;
};

// Backward of layer_block. grad_hidden [own_rows, hidden]: in, of the layer's output; out, of its input, without the
// part that goes through the attention norm. Weight gradients +=, those of projections of `normed` late. grad_normed =
// this rank's share of the gradient of `normed` (layer_normed_input) when attention was read (undefined otherwise:
// zero; `normed` may then be undefined too).
void layer_block_backward(const LayerContext& context, int layer, const LayerWeights& weights,
                          const LayerActivations& kept, const Tensor& normed, const std::optional<KvRead>& read,
                          KvGradientSums sums, Tensor& grad_hidden, Tensor& grad_normed, LayerWeights& gradients,
                          LateWeightGradients& late);

// Backward of layer_key_value, from dK or dV: weight gradients += late, grad_normed += (or =, when it comes undefined).
void layer_key_value_backward(const LayerContext& context, const LayerWeights& weights, KvPart part,
                              const LayerActivations& kept, const Tensor& normed, const Tensor& gradient,
                              Tensor& grad_normed, LayerWeights& gradients, LateWeightGradients& late);

// Backward of layer_attention_norm: grad_hidden +=, gain gradient +=. Computes the late weight gradients while ranks
// sum grad_normed.
void layer_attention_norm_backward(const LayerContext& context, const LayerWeights& weights,
                                   const LayerActivations& kept, Tensor grad_normed, Tensor& grad_hidden,
                                   LayerWeights& gradients, LateWeightGradients& late);

// The shapes of attention of `layer` over `keys` keys held in `capacity` places.
AttentionShape attention_shape(const LayerContext& context, int layer, std::int64_t keys, std::int64_t capacity);

}  // namespace kvloom
