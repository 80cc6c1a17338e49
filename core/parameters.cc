#include "core/parameters.h"

#include <cmath>
#include <utility>

#include "kernels/random.h"

namespace kvloom {

ParameterLayout::ParameterLayout(const ModelConfig& config) {
  const auto range = static_cast<float>(config.initializer_range);
  const float residual = range / std::sqrt(2.0f * static_cast<float>(config.layers));
  const std::int64_t query_columns = config.heads * config.head_dim;
  const std::int64_t kv_columns = config.kv_heads * config.head_dim;
  const Shape hidden = {config.hidden};

  add("model.embed_tokens.weight", {config.vocab, config.hidden}, Decay::kYes, 0, range);
  for (int layer = 0; layer < config.layers; ++layer) {
    const std::string at = fmt::format("model.layers.{}.", layer);
    const bool is_kv_layer = config.kv_map.is_kv_layer(layer);
    add(at + "input_layernorm.weight", hidden, Decay::kNo, 1, 0);
    add(at + "self_attn.q_proj.weight", {query_columns, config.hidden}, Decay::kYes, 0, range);
    if (is_kv_layer) {
      add(at + "self_attn.k_proj.weight", {kv_columns, config.hidden}, Decay::kYes, 0, range);
      add(at + "self_attn.v_proj.weight", {kv_columns, config.hidden}, Decay::kYes, 0, range);
    }
    if (config.qkv_bias) {
      add(at + "self_attn.q_proj.bias", {query_columns}, Decay::kNo, 0, 0);
      if (is_kv_layer) {
        add(at + "self_attn.k_proj.bias", {kv_columns}, Decay::kNo, 0, 0);
        add(at + "self_attn.v_proj.bias", {kv_columns}, Decay::kNo, 0, 0);
      }
    }
    if (config.qk_norm) {
      add(at + "self_attn.q_norm.weight", {config.head_dim}, Decay::kNo, 1, 0);
      if (is_kv_layer) add(at + "self_attn.k_norm.weight", {config.head_dim}, Decay::kNo, 1, 0);
    }
    add(at + "self_attn.o_proj.weight", {config.hidden, query_columns}, Decay::kYes, 0, residual);
    add(at + "post_attention_layernorm.weight", hidden, Decay::kNo, 1, 0);
    add(at + "mlp.gate_proj.weight", {config.ffn, config.hidden}, Decay::kYes, 0, range);
    add(at + "mlp.up_proj.weight", {config.ffn, config.hidden}, Decay::kYes, 0, range);
    add(at + "mlp.down_proj.weight", {config.hidden, config.ffn}, Decay::kYes, 0, residual);
  }
  add("model.norm.weight", hidden, Decay::kNo, 1, 0);
  if (!config.tied_embeddings) add("lm_head.weight", {config.vocab, config.hidden}, Decay::kYes, 0, range);
}

void ParameterLayout::add(std::string name, Shape shape, Decay decay, float mean, float stddev) {
  index_.emplace(name, parameters_.size());
  const std::int64_t count = element_count(shape);
  parameters_.push_back({std::move(name), std::move(shape), count_, decay, mean, stddev});
  count_ += count;
}

const Parameter& ParameterLayout::at(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  if (found == index_.end()) fail("parameters: this model has no '{}'", name);
  return parameters_[found->second];
}

ModelWeights view_weights(const ModelConfig& config, const ParameterLayout& layout, const Tensor& matrices,
                          const Tensor& vectors) {
  const auto view = [&](const std::string& name) {
    if (!layout.contains(name)) return Tensor();
    const Parameter& parameter = layout.at(name);
    return (parameter.shape.size() == 1 ? vectors : matrices).view(parameter.offset, parameter.shape);
  };
  ModelWeights weights;
  weights.embedding = view("model.embed_tokens.weight");
  for (int layer = 0; layer < config.layers; ++layer) {
    const std::string at = fmt::format("model.layers.{}.", layer);
    weights.layers.push_back({
        .attention_norm = view(at + "input_layernorm.weight"),
        .query = view(at + "self_attn.q_proj.weight"),
        .key = view(at + "self_attn.k_proj.weight"),
        .value = view(at + "self_attn.v_proj.weight"),
        .query_bias = view(at + "self_attn.q_proj.bias"),
        .key_bias = view(at + "self_attn.k_proj.bias"),
        .value_bias = view(at + "self_attn.v_proj.bias"),
        .query_norm = view(at + "self_attn.q_norm.weight"),
        .key_norm = view(at + "self_attn.k_norm.weight"),
        .output = view(at + "self_attn.o_proj.weight"),
        .ffn_norm = view(at + "post_attention_layernorm.weight"),
        .gate_up = matrices.view(layout.at(at + "mlp.gate_proj.weight").offset, {2 * config.ffn, config.hidden}),
        .down = view(at + "mlp.down_proj.weight"),
    });
  }
  weights.final_norm = view("model.norm.weight");
  weights.head = config.tied_embeddings ? weights.embedding : view("lm_head.weight");
  return weights;
}

void initialize_parameters(const ParameterLayout& layout, std::uint64_t seed, Tensor& master) {
  for (const Parameter& parameter : layout.all()) {
    Tensor values = master.view(parameter.offset, parameter.shape);
    cpu::run(FillNormal{.output = values.as<float>().data(),
                        .count = values.count(),
                        .seed = seed,
                        .stream = stream_id(parameter.name),
                        .first_element = 0,
                        .mean = parameter.mean,
                        .stddev = parameter.stddev});
  }
}

}  // namespace kvloom
