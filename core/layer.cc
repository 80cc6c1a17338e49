#include "core/layer.h"

#include <array>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

namespace kvloom {
namespace {

Tensor hidden_like(const LayerContext& context, std::int64_t columns) {
  return Tensor::empty(context.allocator, {context.rows(), columns}, context.dtype);
}

// Projection, bias and per-head norm of a query or key. `raw` and `inverse_rms` are kept for backward where there is a
// norm.
Tensor project(const LayerContext& context, const Tensor& normed, const Tensor& weight, const Tensor& bias,
               const Tensor& norm, Tensor* raw, Tensor* inverse_rms) {
  Tensor result = hidden_like(context, weight.size(0));
  ops::linear_bias(normed, weight, bias, result);
  if (norm.defined()) {
    Tensor before = result;
    result = hidden_like(context, weight.size(0));
    Tensor scale = Tensor::empty(context.allocator, {before.count() / norm.count()}, DType::kF32);
    ops::rms_norm(before, norm, context.config.norm_epsilon, result, scale);
    if (raw != nullptr) *raw = before;
    if (inverse_rms != nullptr) *inverse_rms = scale;
  }
  return result;
}

// The same, and then rotation.
Tensor project_and_rotate(const LayerContext& context, const Tensor& normed, const Tensor& weight, const Tensor& bias,
                          const Tensor& norm, Tensor* raw, Tensor* inverse_rms) {
  Tensor result = project(context, normed, weight, bias, norm, raw, inverse_rms);
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
                            .log_sum_exp = log_sum_exp == nullptr ? nullptr : log_sum_exp->as<float>().data(),
                            .starts = context.starts == nullptr ? nullptr : context.starts->as<std::int32_t>().data()});
  return output;
}

// residual + input weight^T, the sum over the ranks that split the product: a new tensor [own_rows, hidden].
Tensor add_projection(const LayerContext& context, const Tensor& residual, const Tensor& input, const Tensor& weight) {
  if (context.tensor == nullptr) {
    Tensor sum = Tensor::empty(context.allocator, residual.shape(), residual.dtype());
    ops::linear_add(input, weight, residual, sum);
    return sum;
  }
  Tensor partial = hidden_like(context, weight.size(0));
  ops::linear(input, weight, partial);
  Tensor sum = context.tensor->combine(std::move(partial));
  ops::add(residual, sum, sum);
  return sum;
}

// A hidden state and its RMSNorm, own rows both.
struct Normed {
  Tensor hidden;
  Tensor values;
  Tensor inverse_rms;  // f32 [own_rows]
};

Normed space_for_norm(const LayerContext& context, const Tensor& hidden) {
  return {hidden, Tensor::empty(context.allocator, hidden.shape(), hidden.dtype()),
          Tensor::empty(context.allocator, {hidden.size(0)}, DType::kF32)};
}

Normed norm_of(const LayerContext& context, const Tensor& hidden, const Tensor& gain) {
  Normed normed = space_for_norm(context, hidden);
  ops::rms_norm(hidden, gain, context.config.norm_epsilon, normed.values, normed.inverse_rms);
  return normed;
}

// norm_of(add_projection(...)). Without other ranks the product adds the residual itself; with them the norm does.
Normed norm_of_projection(const LayerContext& context, const Tensor& residual, const Tensor& input,
                          const Tensor& weight, const Tensor& gain) {
  if (context.tensor == nullptr) return norm_of(context, add_projection(context, residual, input, weight), gain);
  Tensor partial = hidden_like(context, weight.size(0));
  ops::linear(input, weight, partial);
  Normed normed = space_for_norm(context, context.tensor->combine(std::move(partial)));
  ops::add_rms_norm(residual, normed.hidden, gain, context.config.norm_epsilon, normed.hidden, normed.values,
                    normed.inverse_rms);
  return normed;
}

Tensor spread(const LayerContext& context, const Tensor& own) {
  return context.tensor == nullptr ? own : context.tensor->spread(own);
}

// From the hidden state between attention and feed-forward.
Tensor feed_forward(const LayerContext& context, const LayerWeights& weights, const Normed& middle,
                    LayerActivations* kept) {
  const Tensor normed = spread(context, middle.values);
  Tensor gate_up = hidden_like(context, weights.gate_up.size(0));
  ops::linear(normed, weights.gate_up, gate_up);
  Tensor activation = hidden_like(context, weights.down.size(1));
  ops::swiglu(gate_up, activation);
  if (kept != nullptr) {
    kept->middle = middle.hidden;
    kept->ffn_inverse_rms = middle.inverse_rms;
    kept->gate_up = gate_up;
  }
  return add_projection(context, middle.hidden, activation, weights.down);
}

}  // namespace

AttentionShape attention_shape(const LayerContext& context, int layer, std::int64_t keys, std::int64_t capacity) {
  const ModelConfig& config = context.config;
  return {.batch = context.sequences,
          .queries = context.positions,
          .keys = keys,
          .heads = context.heads(),
          .kv_heads = context.kv_heads(),
          .head_dim = config.head_dim,
          .first_position = context.first_position,
          .visibility = config.kv_map.visibility(layer),
          .window = config.kv_map.window(layer),
          .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
          .query_stride = context.heads() * config.head_dim,
          .output_stride = context.heads() * config.head_dim,
          .key_stride = context.kv_heads() * config.head_dim,
          .key_batch_stride = capacity * context.kv_heads() * config.head_dim,
          .dtype = context.dtype};
}

Tensor layer_attention_norm(const LayerContext& context, const LayerWeights& weights, const Tensor& input,
                            LayerActivations* kept) {
  const Normed normed = norm_of(context, input, weights.attention_norm);
  if (kept != nullptr) {
    kept->input = input;
    kept->attention_inverse_rms = normed.inverse_rms;
  }
  return spread(context, normed.values);
}

Tensor layer_normed_input(const LayerContext& context, const LayerWeights& weights, const LayerActivations& kept) {
  return layer_attention_norm(context, weights, kept.input, nullptr);
}

Tensor layer_key_value(const LayerContext& context, const LayerWeights& weights, KvPart part, const Tensor& normed,
                       LayerActivations* kept) {
  Tensor rows;
  if (part == KvPart::kKey) {
    rows = project_and_rotate(context, normed, weights.key, weights.key_bias, weights.key_norm,
                              kept == nullptr ? nullptr : &kept->key_raw,
                              kept == nullptr ? nullptr : &kept->key_inverse_rms);
  } else {
    rows = project(context, normed, weights.value, weights.value_bias, Tensor(), nullptr, nullptr);
  }
  return rows.reshaped({context.sequences, context.positions, rows.size(1)});
}

Tensor layer_query(const LayerContext& context, const LayerWeights& weights, const Tensor& normed, KeyValue& cache) {
  if (!weights.key.defined() && !weights.value.defined()) {
    return project_and_rotate(context, normed, weights.query, weights.query_bias, weights.query_norm, nullptr, nullptr);
  }
  Tensor query = hidden_like(context, weights.query.size(0));
  const auto split = [&](std::span<const ops::HeadsPart> parts) {
    ops::rope_split(parts, context.rope.cosine, context.rope.sine, context.row_positions());
  };
  if (weights.query_key_value.defined() && !weights.query_norm.defined() && !weights.key_norm.defined()) {
    Tensor joint = hidden_like(context, weights.query_key_value.size(0));
    ops::linear_bias(normed, weights.query_key_value, weights.query_key_value_bias, joint);
    const std::int64_t key_column = query.size(1);
    split(std::array{
        ops::HeadsPart{joint, 0, query}, ops::HeadsPart{joint, key_column, cache.key, RowPlace::kAtPosition},
        ops::HeadsPart{joint, key_column + weights.key.size(0), cache.value, RowPlace::kAtPosition, HeadTurn::kAsIs}});
    return query;
  }
  const auto own = [&](const Tensor& weight, const Tensor& bias, const Tensor& gain) {
    return weight.defined() ? project(context, normed, weight, bias, gain, nullptr, nullptr) : Tensor();
  };
  const Tensor unrotated = own(weights.query, weights.query_bias, weights.query_norm);
  const Tensor key = own(weights.key, weights.key_bias, weights.key_norm);
  const Tensor value = own(weights.value, weights.value_bias, Tensor());
  std::vector<ops::HeadsPart> parts;
  parts.push_back({unrotated, 0, query});
  if (key.defined()) parts.push_back({key, 0, cache.key, RowPlace::kAtPosition});
  if (value.defined()) parts.push_back({value, 0, cache.value, RowPlace::kAtPosition, HeadTurn::kAsIs});
  split(parts);
  return query;
}

Tensor layer_block_from_query(const LayerContext& context, int layer, const LayerWeights& weights, const Tensor& input,
                              const Tensor& query, const KvRead& read) {
  if (read.keys == 0) return feed_forward(context, weights, norm_of(context, input, weights.ffn_norm), nullptr);
  const Tensor attention = attend(context, layer, query, read, nullptr);
  return feed_forward(context, weights, norm_of_projection(context, input, attention, weights.output, weights.ffn_norm),
                      nullptr);
}

Tensor layer_block(const LayerContext& context, int layer, const LayerWeights& weights, const Tensor& input,
                   const Tensor& normed, const std::optional<KvRead>& read, LayerActivations* kept) {
  // Nothing read, nothing added: the block's attention output is exactly zero.
  if (!read.has_value() || read->keys == 0) {
    return feed_forward(context, weights, norm_of(context, input, weights.ffn_norm), kept);
  }
  const Tensor query = project_and_rotate(context, normed, weights.query, weights.query_bias, weights.query_norm,
                                          kept == nullptr ? nullptr : &kept->query_raw,
                                          kept == nullptr ? nullptr : &kept->query_inverse_rms);
  Tensor log_sum_exp;
  if (kept != nullptr) {
    log_sum_exp = Tensor::empty(context.allocator, {context.rows(), context.heads()}, DType::kF32);
  }
  const Tensor attention = attend(context, layer, query, *read, kept == nullptr ? nullptr : &log_sum_exp);
  const Normed middle = norm_of_projection(context, input, attention, weights.output, weights.ffn_norm);
  if (kept != nullptr) {
    kept->query = query;
    kept->attention = attention;
    kept->log_sum_exp = log_sum_exp;
  }
  return feed_forward(context, weights, middle, kept);
}

}  // namespace kvloom
