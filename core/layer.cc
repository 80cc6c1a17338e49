#include "core/layer.h"

#include <cmath>

namespace kvloom {
namespace {

Tensor hidden_like(const LayerContext& context, std::int64_t columns) {
  return Tensor::empty(context.allocator, {context.rows(), columns}, context.dtype);
}

// Projection, bias and per-head norm of a query or key, then rotation. `raw` and `inverse_rms` are kept for backward
// where there is a norm.
Tensor project_and_rotate(const LayerContext& context, const Tensor& normed, const Tensor& weight, const Tensor& bias,
                          const Tensor& norm, Tensor* raw, Tensor* inverse_rms) {
  Tensor result = hidden_like(context, weight.size(0));
  ops::linear(normed, weight, result);
  if (bias.defined()) ops::add_bias(result, bias);
  if (norm.defined()) {
    Tensor before = result;
    result = hidden_like(context, weight.size(0));
    Tensor scale = Tensor::empty(context.allocator, {before.count() / norm.count()}, DType::kF32);
    ops::rms_norm(before, norm, context.config.norm_epsilon, result, scale);
    if (raw != nullptr) *raw = before;
    if (inverse_rms != nullptr) *inverse_rms = scale;
  }
  ops::rope(result, context.rope.cosine, context.rope.sine, context.row_positions(), Rotation::kForward);
  return result;
}

Tensor attend(const LayerContext& context, int layer, const Tensor& query, const KvRead& read, Tensor* log_sum_exp) {
  Tensor output = hidden_like(context, query.size(1));
  ops::run(query.device(),
           AttentionForward{.shape = attention_shape(context, layer, read.keys, read.source.key.size(1)),
                            .query = query.data(),
                            .key = read.source.key.data(),
                            .value = read.source.value.data(),
                            .output = output.data(),
                            .log_sum_exp = log_sum_exp == nullptr ? nullptr : log_sum_exp->as<float>().data()});
  return output;
}

// A tensor of its own with the same values, for a residual sum to accumulate into.
Tensor duplicate(const LayerContext& context, const Tensor& tensor) {
  Tensor result = Tensor::empty(context.allocator, tensor.shape(), tensor.dtype());
  ops::copy(tensor, result);
  return result;
}

Tensor feed_forward(const LayerContext& context, const LayerWeights& weights, const Tensor& middle,
                    LayerActivations* kept) {
  Tensor normed = hidden_like(context, middle.size(1));
  Tensor inverse_rms = Tensor::empty(context.allocator, {context.rows()}, DType::kF32);
  ops::rms_norm(middle, weights.ffn_norm, context.config.norm_epsilon, normed, inverse_rms);
  Tensor gate_up = hidden_like(context, weights.gate_up.size(0));
  ops::linear(normed, weights.gate_up, gate_up);
  Tensor activation = hidden_like(context, weights.down.size(1));
  ops::swiglu(gate_up, activation);
  Tensor output = duplicate(context, middle);
  ops::linear(activation, weights.down, output, Output::kAccumulate);
  if (kept != nullptr) {
    kept->middle = middle;
    kept->ffn_inverse_rms = inverse_rms;
    kept->gate_up = gate_up;
  }
  return output;
}

}  // namespace

AttentionShape attention_shape(const LayerContext& context, int layer, std::int64_t keys, std::int64_t capacity) {
  const ModelConfig& config = context.config;
  return {.batch = context.sequences,
          .queries = context.positions,
          .keys = keys,
          .heads = config.heads,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .first_position = context.first_position,
          .visibility = config.kv_map.visibility(layer),
          .window = config.kv_map.window(layer),
          .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
          .query_stride = config.heads * config.head_dim,
          .output_stride = config.heads * config.head_dim,
          .key_stride = config.kv_heads * config.head_dim,
          .key_batch_stride = capacity * config.kv_heads * config.head_dim,
          .dtype = context.dtype};
}

Tensor layer_attention_norm(const LayerContext& context, const LayerWeights& weights, const Tensor& input,
                            LayerActivations* kept) {
  Tensor normed = hidden_like(context, input.size(1));
  Tensor inverse_rms = Tensor::empty(context.allocator, {context.rows()}, DType::kF32);
  ops::rms_norm(input, weights.attention_norm, context.config.norm_epsilon, normed, inverse_rms);
  if (kept != nullptr) {
    kept->input = input;
    kept->attention_inverse_rms = inverse_rms;
  }
  return normed;
}

KeyValue layer_key_value(const LayerContext& context, const LayerWeights& weights, const Tensor& normed,
                         LayerActivations* kept) {
  const Tensor key = project_and_rotate(context, normed, weights.key, weights.key_bias, weights.key_norm,
                                        kept == nullptr ? nullptr : &kept->key_raw,
                                        kept == nullptr ? nullptr : &kept->key_inverse_rms);
  Tensor value = hidden_like(context, weights.value.size(0));
  ops::linear(normed, weights.value, value);
  if (weights.value_bias.defined()) ops::add_bias(value, weights.value_bias);
  const Shape shape = {context.sequences, context.positions, value.size(1)};
  return {key.reshaped(shape), value.reshaped(shape)};
}

Tensor layer_block(const LayerContext& context, int layer, const LayerWeights& weights, const Tensor& input,
                   const Tensor& normed, const std::optional<KvRead>& read, LayerActivations* kept) {
  // Nothing read, nothing added: the block's attention output is exactly zero.
  if (!read.has_value() || read->keys == 0) return feed_forward(context, weights, input, kept);
  const Tensor query = project_and_rotate(context, normed, weights.query, weights.query_bias, weights.query_norm,
                                          kept == nullptr ? nullptr : &kept->query_raw,
                                          kept == nullptr ? nullptr : &kept->query_inverse_rms);
  Tensor log_sum_exp;
  if (kept != nullptr) {
    log_sum_exp = Tensor::empty(context.allocator, {context.rows(), context.config.heads}, DType::kF32);
  }
  const Tensor attention = attend(context, layer, query, *read, kept == nullptr ? nullptr : &log_sum_exp);
  Tensor middle = duplicate(context, input);
  ops::linear(attention, weights.output, middle, Output::kAccumulate);
  if (kept != nullptr) {
    kept->query = query;
    kept->attention = attention;
    kept->log_sum_exp = log_sum_exp;
  }
  return feed_forward(context, weights, middle, kept);
}

}  // namespace kvloom
