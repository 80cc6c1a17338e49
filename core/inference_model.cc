#include "core/inference_model.h"

#include <array>
#include <charconv>
#include <utility>

#include "core/ops.h"
#include "kernels/random.h"

namespace kvloom {
namespace {

constexpr std::string_view kLayers = "model.layers.";

std::size_t bytes_of(const InferenceLayer& layer) {
  std::size_t bytes = 0;
  for (const PackedWeight* matrix :
       {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate_up, &layer.down}) {
    if (matrix->defined()) bytes += matrix->bytes();
  }
  for (const Tensor* vector : {&layer.attention_norm, &layer.query_bias, &layer.key_bias, &layer.value_bias,
                               &layer.query_norm, &layer.key_norm, &layer.ffn_norm}) {
    if (vector->defined()) bytes += vector->bytes();
  }
  return bytes;
}

}  // namespace

InferenceFormat inference_format(const std::string& precision, const std::string& weights) {
  InferenceFormat format;
  if (precision == "bf16") {
    format = {.compute = DType::kBF16, .weights = WeightFormat::kBF16};
  } else if (precision != "f32") {
    reject_input("--precision: '{}'; right are f32 and bf16", precision);
  }
  if (weights.empty() || weights == precision) return format;
  if (weights != "int8")
    reject_input("--weights: '{}' beside {}; right are {} and int8", weights, precision, precision);
  format.weights = WeightFormat::kInt8;
  return format;
}

InferenceModel::InferenceModel(ModelConfig config, ModelShard shard, InferenceFormat format, Allocator& allocator)
    : config_(std::move(config)),
      shard_(std::move(shard)),
      format_(format),
      allocator_(allocator),
      layout_(config_, shard_),
      layers_(static_cast<std::size_t>(config_.layers)) {
  const AxisPart vocab = shard_.vocab(config_);
  const WeightFormat plain = format.compute == DType::kF32 ? WeightFormat::kF32 : WeightFormat::kBF16;
  const bool is_head = config_.tied_embeddings;
  if (shard_.embedding || (shard_.head && is_head)) {
    // Looking rows up gains nothing from int8; a head does.
    embedding_ = PackedWeight(allocator, {vocab.size(), config_.hidden, is_head ? format.weights : plain});
  }
  for (int layer = 0; layer < config_.layers; ++layer) {
    if (shard_.holds(layer)) make_layer(layer);
  }
  if (!shard_.head) return;
  final_norm_ = Tensor::empty(allocator, {config_.hidden}, DType::kF32);
  if (!is_head) head_ = PackedWeight(allocator, {vocab.size(), config_.hidden, format.weights});
}

void InferenceModel::make_layer(int index) {
  InferenceLayer& layer = layers_[static_cast<std::size_t>(index)];
  const std::int64_t hidden = config_.hidden;
  const std::int64_t queries = shard_.heads(config_).size() * config_.head_dim;
  const std::int64_t keys = shard_.kv_heads(config_).size() * config_.head_dim;
  const std::int64_t ffn = shard_.ffn(config_).size();
  const auto matrix = [&](std::int64_t outputs, std::int64_t inputs) {
    return PackedWeight(allocator_, {outputs, inputs, format_.weights});
  };
  const auto vector = [&](std::int64_t count) { return Tensor::empty(allocator_, {count}, DType::kF32); };
  layer.attention_norm = vector(hidden);
  layer.query = matrix(queries, hidden);
  layer.output = matrix(hidden, queries);
  layer.ffn_norm = vector(hidden);
  layer.gate_up = matrix(2 * ffn, hidden);
  layer.down = matrix(hidden, ffn);
  if (config_.qkv_bias) layer.query_bias = vector(queries);
  if (config_.qk_norm) layer.query_norm = vector(config_.head_dim);
  if (config_.kv_map.owns(KvPart::kKey, index)) {
    layer.key = matrix(keys, hidden);
    if (config_.qkv_bias) layer.key_bias = vector(keys);
    if (config_.qk_norm) layer.key_norm = vector(config_.head_dim);
  }
  if (config_.kv_map.owns(KvPart::kValue, index)) {
    layer.value = matrix(keys, hidden);
    if (config_.qkv_bias) layer.value_bias = vector(keys);
  }
}

InferenceModel::Place InferenceModel::place_of(const std::string& name) {
  if (name == "model.embed_tokens.weight") return {.matrix = &embedding_};
  if (name == "lm_head.weight") return {.matrix = &head_};
  if (name == "model.norm.weight") return {.vector = &final_norm_};
  if (!name.starts_with(kLayers)) return {};
  std::size_t index = 0;
  const auto [end, error] = std::from_chars(name.data() + kLayers.size(), name.data() + name.size(), index);
  if (error != std::errc() || index >= layers_.size()) return {};
  const std::string_view rest(end + 1, static_cast<std::size_t>(name.data() + name.size() - end - 1));
  InferenceLayer& layer = layers_[index];
  const std::array<std::pair<std::string_view, Place>, 14> places = {{
      {"input_layernorm.weight", {.vector = &layer.attention_norm}},
      {"self_attn.q_proj.weight", {.matrix = &layer.query}},
      {"self_attn.k_proj.weight", {.matrix = &layer.key}},
      {"self_attn.v_proj.weight", {.matrix = &layer.value}},
      {"self_attn.q_proj.bias", {.vector = &layer.query_bias}},
      {"self_attn.k_proj.bias", {.vector = &layer.key_bias}},
      {"self_attn.v_proj.bias", {.vector = &layer.value_bias}},
      {"self_attn.q_norm.weight", {.vector = &layer.query_norm}},
      {"self_attn.k_norm.weight", {.vector = &layer.key_norm}},
      {"self_attn.o_proj.weight", {.matrix = &layer.output}},
      {"post_attention_layernorm.weight", {.vector = &layer.ffn_norm}},
      {"mlp.gate_proj.weight", {.matrix = &layer.gate_up}},
      {"mlp.up_proj.weight", {.matrix = &layer.gate_up, .first_output = shard_.ffn(config_).size()}},
      {"mlp.down_proj.weight", {.matrix = &layer.down}},
  }};
  const auto found = std::ranges::find(places, rest, &std::pair<std::string_view, Place>::first);
  return found == places.end() ? Place{} : found->second;
}

void InferenceModel::put(const Parameter& parameter, std::int64_t first_row, const Tensor& values) {
  const Place place = place_of(parameter.name);
  if (place.matrix != nullptr && place.matrix->defined()) {
    return place.matrix->pack(place.first_output + first_row, values);
  }
  if (place.vector == nullptr || !place.vector->defined()) fail("inference model: has no '{}'", parameter.name);
  Tensor target = place.vector->view(first_row, {values.count()});
  ops::copy(values, target);
}

std::size_t InferenceModel::bytes() const {
  std::size_t bytes = 0;
  for (const InferenceLayer& layer : layers_) bytes += bytes_of(layer);
  for (const PackedWeight* matrix : {&embedding_, &head_}) bytes += matrix->defined() ? matrix->bytes() : 0;
  return bytes + (final_norm_.defined() ? final_norm_.bytes() : 0);
}

}  // namespace kvloom
