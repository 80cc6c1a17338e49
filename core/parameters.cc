#include "core/parameters.h"

#include <cmath>
#include <utility>

#include "kernels/random.h"

namespace kvloom {

struct ParameterLayout::Builder {
  const ModelConfig& config;
  const ModelShard& shard;
  ParameterLayout& layout;
  float range = static_cast<float>(config.initializer_range);
  int current_part = kEmbeddingPart;
  float residual = range / std::sqrt(2.0f * static_cast<float>(config.layers));

  AxisPart columns_of(const AxisPart& heads) const {
    return {heads.begin * config.head_dim, heads.end * config.head_dim};
  }
  static AxisPart all(std::int64_t size) { return {0, size}; }

  void add(std::string name, Shape global_shape, std::vector<AxisPart> parts, TensorCopies copies, Decay decay,
           float mean, float stddev) {
    Parameter parameter{.name = std::move(name),
                        .part = current_part,
                        .shape = {},
                        .offset = layout.count_,
                        .global_shape = std::move(global_shape),
                        .global_offset = {},
                        .copies = copies,
                        .first_copy = is_first(copies),
                        .decay = decay,
                        .mean = mean,
                        .stddev = stddev};
    for (const AxisPart& part : parts) {
      parameter.shape.push_back(part.size());
      parameter.global_offset.push_back(part.begin);
    }
    layout.count_ += element_count(parameter.shape);
    layout.index_.emplace(parameter.name, layout.parameters_.size());
    layout.parameters_.push_back(std::move(parameter));
  }

  bool is_first(TensorCopies copies) const {
    if (copies == TensorCopies::kSplit) return true;
    if (copies == TensorCopies::kKeyValue) return shard.tensor_rank % shard.kv_copies(config) == 0;
    return shard.tensor_rank == 0;
  }

  // A matrix [out, in] of which this shard has `rows` of the output.
  void matrix(std::string name, std::int64_t out, AxisPart rows, TensorCopies copies = TensorCopies::kSplit) {
    add(std::move(name), {out, config.hidden}, {rows, all(config.hidden)}, copies, Decay::kYes, 0, range);
  }
  // A matrix [hidden, in] that writes to the residual stream, of which this shard has `columns` of the input.
  void residual_matrix(std::string name, std::int64_t in, AxisPart columns) {
    add(std::move(name), {config.hidden, in}, {all(config.hidden), columns}, TensorCopies::kSplit, Decay::kYes, 0,
        residual);
  }
  void norm(std::string name, std::int64_t size, TensorCopies copies) {
    add(std::move(name), {size}, {all(size)}, copies, Decay::kNo, 1, 0);
  }
  void bias(std::string name, std::int64_t size, AxisPart part, TensorCopies copies) {
    add(std::move(name), {size}, {part}, copies, Decay::kNo, 0, 0);
  }

  void embedding() {
    current_part = kEmbeddingPart;
    matrix("model.embed_tokens.weight", config.vocab, shard.vocab(config));
  }

  void layer(int layer) {
    current_part = layer;
    const std::string at = fmt::format("model.layers.{}.", layer);
    const bool owns_key = config.kv_map.owns(KvPart::kKey, layer);
    const bool owns_value = config.kv_map.owns(KvPart::kValue, layer);
    const std::int64_t query_columns = config.heads * config.head_dim;
    const std::int64_t kv_columns = config.kv_heads * config.head_dim;
    const AxisPart query = columns_of(shard.heads(config));
    const AxisPart key_value = columns_of(shard.kv_heads(config));
    norm(at + "input_layernorm.weight", config.hidden, TensorCopies::kHiddenNorm);
    matrix(at + "self_attn.q_proj.weight", query_columns, query);
    if (owns_key) matrix(at + "self_attn.k_proj.weight", kv_columns, key_value, TensorCopies::kKeyValue);
    if (owns_value) matrix(at + "self_attn.v_proj.weight", kv_columns, key_value, TensorCopies::kKeyValue);
    if (config.qkv_bias) {
      bias(at + "self_attn.q_proj.bias", query_columns, query, TensorCopies::kSplit);
      if (owns_key) bias(at + "self_attn.k_proj.bias", kv_columns, key_value, TensorCopies::kKeyValue);
      if (owns_value) bias(at + "self_attn.v_proj.bias", kv_columns, key_value, TensorCopies::kKeyValue);
    }
    if (config.qk_norm) {
      norm(at + "self_attn.q_norm.weight", config.head_dim, TensorCopies::kHeadNorm);
      if (owns_key) norm(at + "self_attn.k_norm.weight", config.head_dim, TensorCopies::kHeadNorm);
    }
    residual_matrix(at + "self_attn.o_proj.weight", query_columns, query);
    norm(at + "post_attention_layernorm.weight", config.hidden, TensorCopies::kHiddenNorm);
    matrix(at + "mlp.gate_proj.weight", config.ffn, shard.ffn(config));
    matrix(at + "mlp.up_proj.weight", config.ffn, shard.ffn(config));
    residual_matrix(at + "mlp.down_proj.weight", config.ffn, shard.ffn(config));
  }

  void head() {
    current_part = static_cast<int>(config.layers);
    norm("model.norm.weight", config.hidden, TensorCopies::kHiddenNorm);
    if (!config.tied_embeddings) {
      matrix("lm_head.weight", config.vocab, shard.vocab(config));
    } else if (!shard.embedding) {
      embedding();
      layout.parameters_.back().first_copy = false;
    }
  }
};

ParameterLayout::ParameterLayout(const ModelConfig& config, const ModelShard& shard) {
  shard.check(config);
  Builder builder{.config = config, .shard = shard, .layout = *this};
  if (shard.embedding) builder.embedding();
  for (int layer = 0; layer < config.layers; ++layer) {
    if (shard.holds(layer)) builder.layer(layer);
  }
  if (shard.head) builder.head();
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
  const auto gate_up = [&](const std::string& at) {
    if (!layout.contains(at + "mlp.gate_proj.weight")) return Tensor();
    const Parameter& gate = layout.at(at + "mlp.gate_proj.weight");
    return matrices.view(gate.offset, {2 * gate.shape[0], gate.shape[1]});
  };
  // All of q, k and v of a layer that has them, the matrices or the biases, as one.
  const auto joint = [&](const std::string& at, const std::string& kind) {
    if (!layout.contains(at + "k_proj." + kind) || !layout.contains(at + "v_proj." + kind)) return Tensor();
    const Parameter& query = layout.at(at + "q_proj." + kind);
    Shape shape = query.shape;
    shape[0] += 2 * layout.at(at + "k_proj." + kind).shape[0];
    return (shape.size() == 1 ? vectors : matrices).view(query.offset, shape);
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
        .query_key_value = joint(at + "self_attn.", "weight"),
        .query_key_value_bias = joint(at + "self_attn.", "bias"),
        .query_bias = view(at + "self_attn.q_proj.bias"),
        .key_bias = view(at + "self_attn.k_proj.bias"),
        .value_bias = view(at + "self_attn.v_proj.bias"),
        .query_norm = view(at + "self_attn.q_norm.weight"),
        .key_norm = view(at + "self_attn.k_norm.weight"),
        .output = view(at + "self_attn.o_proj.weight"),
        .ffn_norm = view(at + "post_attention_layernorm.weight"),
        .gate_up = gate_up(at),
        .down = view(at + "mlp.down_proj.weight"),
    });
  }
  weights.final_norm = view("model.norm.weight");
  weights.head = config.tied_embeddings ? weights.embedding : view("lm_head.weight");
  return weights;
}

void fill_starting_values(const Parameter& parameter, std::uint64_t seed, std::int64_t first_row,
                          std::span<float> values) {
  const std::int64_t count = std::ssize(values);
  const bool is_matrix = parameter.shape.size() == 2;
  const std::int64_t columns = is_matrix ? parameter.shape[1] : 1;
  const std::int64_t global_columns = is_matrix ? parameter.global_shape[1] : 1;
  const std::int64_t first_column = is_matrix ? parameter.global_offset[1] : 0;
  // Runs of elements that are neighbours in the whole parameter: all of them, or one row at a time.
  const std::int64_t run = columns == global_columns ? count : columns;
  const std::int64_t first_element = (parameter.global_offset[0] + first_row) * global_columns + first_column;
  for (std::int64_t begin = 0; begin < count; begin += run) {
    cpu::run(FillNormal{.output = values.data() + begin,
                        .count = run,
                        .seed = seed,
                        .stream = stream_id(parameter.name),
                        .first_element = first_element + begin / columns * global_columns,
                        .mean = parameter.mean,
                        .stddev = parameter.stddev});
  }
}

void initialize_parameters(const ParameterLayout& layout, std::uint64_t seed, Tensor& master) {
  for (const Parameter& parameter : layout.all()) {
    std::vector<float> values(static_cast<std::size_t>(element_count(parameter.shape)));
    fill_starting_values(parameter, seed, 0, values);
    master.view(parameter.offset, parameter.shape).assign<float>(values);
  }
}

}  // namespace kvloom
