// One decoder block (DESIGN 4), in the pieces that training, prefill and decode put together differently: keys and
// values, and the block that reads them. Forward here and in layer.cc; the hand-written backward in layer_backward.cc.
#pragma once

#include <cstdint>
#include <optional>

#include "core/config.h"
#include "core/kv_store.h"
#include "core/ops.h"
#include "core/parameters.h"
#include "core/rope_table.h"
#include "core/tensor.h"

namespace kvloom {

// What every layer of a run shares. Hidden states are [sequences * positions, hidden] of `dtype`: row r is position
// first_position + r % positions of sequence r / positions.
struct LayerContext {
  const ModelConfig& config;
  const RopeTable& rope;
  Allocator& allocator;
  DType dtype;
  std::int64_t sequences;
  std::int64_t positions;
  std::int64_t first_position = 0;

  std::int64_t rows() const { return sequences * positions; }
  ops::RowPositions row_positions() const { return {positions, first_position}; }
};

// What the backward of one layer run needs of its forward. With `recompute: FULL` only `input` is kept.
struct LayerActivations {
  Tensor input;                  // [rows, hidden]
  Tensor attention_inverse_rms;  // f32 [rows]
  Tensor query_raw;              // before query_norm; with qk_norm only
  Tensor query_inverse_rms;
  Tensor query;  // rotated [rows, heads * head_dim]
  Tensor key_raw;
  Tensor key_inverse_rms;
  Tensor attention;        // [rows, heads * head_dim]; undefined when nothing was read
  Tensor log_sum_exp;      // f32 [rows, heads]
  Tensor middle;           // hidden states between attention and feed-forward
  Tensor ffn_inverse_rms;  // f32 [rows]
  Tensor gate_up;          // [rows, 2 * ffn]
};

// A source's K/V as a reader sees them: the first `keys` of [sequences, capacity, kv_heads * head_dim].
struct KvRead {
  const KeyValue& source;
  std::int64_t keys;
};

// RMSNorm of `input` before attention; keeps `input` and its inverse RMS in `kept` when there is one.
Tensor layer_attention_norm(const LayerContext& context, const LayerWeights& weights, const Tensor& input,
                            LayerActivations* kept);

// K (rotated) and V of a KV layer, [sequences, positions, kv_heads * head_dim] each.
KeyValue layer_key_value(const LayerContext& context, const LayerWeights& weights, const Tensor& normed,
                         LayerActivations* kept);

// Attention over `read` (none: its output is zero), residual, feed-forward, residual: the layer's output, a new tensor.
Tensor layer_block(const LayerContext& context, int layer, const LayerWeights& weights, const Tensor& input,
                   const Tensor& normed, const std::optional<KvRead>& read, LayerActivations* kept);

// dK, dV sums that a reader adds to, or null when the K/V it read are constants.
using KvGradientSums = KeyValue*;

// Backward of layer_block. grad_hidden [rows, hidden]: in, of the layer's output; out, of its input, without the part
// that goes through the attention norm. Weight gradients +=. grad_normed = the gradient of the normed input when
// attention was read (undefined otherwise: zero).
void layer_block_backward(const LayerContext& context, int layer, const LayerWeights& weights,
                          const LayerActivations& kept, const std::optional<KvRead>& read, KvGradientSums sums,
                          Tensor& grad_hidden, Tensor& grad_normed, LayerWeights& gradients);

// Backward of layer_key_value: weight gradients +=, grad_normed += (or =, when it comes undefined).
void layer_key_value_backward(const LayerContext& context, const LayerWeights& weights, const LayerActivations& kept,
                              const KeyValue& grad_key_value, Tensor& grad_normed, LayerWeights& gradients);

// Backward of layer_attention_norm: grad_hidden +=, gain gradient +=.
void layer_attention_norm_backward(const LayerWeights& weights, const LayerActivations& kept, const Tensor& grad_normed,
                                   Tensor& grad_hidden, LayerWeights& gradients);

// The shapes of attention of `layer` over `keys` keys held in `capacity` places.
AttentionShape attention_shape(const LayerContext& context, int layer, std::int64_t keys, std::int64_t capacity);

}  // namespace kvloom
