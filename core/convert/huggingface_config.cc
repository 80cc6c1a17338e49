#include "core/convert/huggingface_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "core/convert/huggingface_rope.h"
#include "core/convert/huggingface_sharing.h"
#include "core/convert/json_fields.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint32_t kDefaultWindow = 4096;  // of mistral, qwen2, qwen3 and lckv-llama alike

struct Family {
  std::string_view name;
  std::uint32_t default_context;
  std::uint32_t default_kv_heads;  // 0: as many as query heads
};
constexpr std::array kFamilies = {Family{"llama", 2048, 0}, Family{"mistral", 4096 * 32, 8}, Family{"qwen2", 32768, 32},
                                  Family{"qwen3", 32768, 32}, Family{"lckv-llama", 2048, 0}};

const Family& family_named(const std::string& name, const std::string& where) {
  const auto found = std::ranges::find(kFamilies, name, &Family::name);
  if (found == kFamilies.end()) {
    reject_input("{}: model_type '{}' is not known; known are llama, mistral, qwen2, qwen3 and lckv-llama", where,
                 name);
  }
  return *found;
}

void refuse(JsonFields& fields, const std::string& name, bool wrong, std::string_view why) {
  if (wrong) reject_input("{}: {}: {}", fields.where(), name, why);
}

// Settings that make it a model which kvloom does not compute.
void refuse_other_models(JsonFields& fields) {
  const std::string activation = fields.text("hidden_act").value_or("silu");
  refuse(fields, "hidden_act", activation != "silu", "'" + activation + "' is not supported; silu is");
  refuse(fields, "mlp_bias", fields.boolean("mlp_bias", false), "a bias in the feed-forward is not supported");
  refuse(fields, "quantization_config", fields.has("quantization_config"), "quantized weights are not supported");
  refuse(fields, "is_encoder_decoder", fields.boolean("is_encoder_decoder", false), "only decoders are supported");
}

void read_shape(JsonFields& fields, const Json& config, const Family& family, proto::ModelConfig& model) {
  model.set_layers(fields.required_integer("num_hidden_layers"));
  model.set_hidden(fields.required_integer("hidden_size"));
  model.set_ffn(fields.required_integer("intermediate_size"));
  model.set_heads(fields.required_integer("num_attention_heads"));
  model.set_vocab(fields.required_integer("vocab_size"));
  // Null is as many as there are query heads in every family; what an absent field means is the family's.
  const bool is_absent = !config.contains("num_key_value_heads");
  const std::uint32_t absent = family.default_kv_heads == 0 ? model.heads() : family.default_kv_heads;
  model.set_kv_heads(fields.integer("num_key_value_heads", is_absent ? absent : model.heads()));
  refuse(fields, "num_key_value_heads", model.kv_heads() == 0, "0 heads make no keys");
  if (const auto size = fields.integer("head_dim")) {
    refuse(fields, "head_dim", *size == 0, "0 makes no heads");
    model.set_head_dim(*size);
  } else if (family.name == "qwen3") {
    model.set_head_dim(128);
  }
  model.set_context(fields.integer("max_position_embeddings", family.default_context));
  model.set_norm_epsilon(fields.number("rms_norm_eps", 1e-6));
  model.set_initializer_range(fields.number("initializer_range", 0.02));
  model.set_tied_embeddings(fields.boolean("tie_word_embeddings", false));
}

// Which layers of qwen2 and qwen3 see a window. Null says that there is none; an absent field is the default.
std::vector<bool> windowed_layers(JsonFields& fields, const Json& config, std::uint32_t layers) {
  const bool is_null = config.contains("sliding_window") && !fields.has("sliding_window");
  const bool used = fields.boolean("use_sliding_window", false) && !is_null;
  const std::uint32_t first = fields.integer("max_window_layers", 28);
  std::vector<bool> windowed;
  if (const auto types = fields.texts("layer_types")) {
    refuse(fields, "layer_types", types->size() != layers, fmt::format("names {} layers of {}", types->size(), layers));
    for (const std::string& type : *types) {
      const bool known = type == "full_attention" || type == "sliding_attention";
      refuse(fields, "layer_types", !known, "'" + type + "' is not supported");
      windowed.push_back(type == "sliding_attention");
    }
    refuse(fields, "layer_types", !used && std::ranges::find(windowed, true) != windowed.end(),
           "has sliding_attention where use_sliding_window is off");
    return windowed;
  }
  for (std::uint32_t layer = 0; layer < layers; ++layer) windowed.push_back(used && layer >= first);
  return windowed;
}

void read_qwen_windows(JsonFields& fields, const Json& config, proto::ModelConfig& model) {
  // Bounded here, before a list of that many layers is made.
  refuse(fields, "num_hidden_layers", model.layers() > 4096, "right is at most 4096");
  const std::vector<bool> windowed = windowed_layers(fields, config, model.layers());
  const std::uint32_t window = fields.integer("sliding_window", kDefaultWindow);
  if (std::ranges::find(windowed, true) == windowed.end()) return;
  std::string map;
  for (std::size_t layer = 0; layer < windowed.size(); ++layer) {
    map += fmt::format("{}{}{}", layer == 0 ? "" : "_", layer, windowed[layer] ? "s" : "");
  }
  model.set_kv_map(map);
  model.set_window(window);
}

void read_mistral_window(JsonFields& fields, const Json& config, HuggingFaceModel& result, proto::ModelConfig& model) {
  // Null says that there is none; an absent field is the default.
  const std::uint32_t window = fields.integer("sliding_window", config.contains("sliding_window") ? 0 : kDefaultWindow);
  const std::string kind = window == 0 ? "full_attention" : "sliding_attention";
  const auto types = fields.texts("layer_types");
  if (types && std::ranges::any_of(*types, [&](const std::string& type) { return type != kind; })) {
    result.unheeded.push_back(fmt::format(
        "{}: layer_types: all layers of a mistral model are {}, as sliding_window says", fields.where(), kind));
  }
  if (window == 0) return;
  model.set_window(window);
  model.set_window_everywhere(true);
}

void read_sharing(JsonFields& fields, HuggingFaceModel& result, proto::ModelConfig& model) {
  for (const char* name : {"kv_source_layers", "num_kv_shared_layers", "use_cla", "kv_reuse_group"}) {
    refuse(fields, name, fields.has(name), "an lckv-llama says by layer_types who shares keys and values");
  }
  const auto map = fields.text("layer_types");
  if (map) model.set_kv_map(*map);
  const bool windowed = map && map->find('s') != std::string::npos;
  const auto window = fields.integer("sliding_window");
  if (windowed || window) model.set_window(window.value_or(kDefaultWindow));
  fields.boolean("use_sequential", false);  // a way to compute, not another model
  model.set_no_diagonal(fields.boolean("force_nodiag", false));
  proto::PassesConfig passes;
  passes.set_without_gradient(fields.integer("forward_passes", 7));
  passes.set_with_gradient(fields.integer("backward_passes", 2));
  result.passes = passes_of(passes);
}

void read_family(JsonFields& fields, const Json& config, HuggingFaceModel& result, proto::ModelConfig& model) {
  const bool bias = fields.boolean("attention_bias", false);
  if (result.family == "qwen2") {
    model.set_qkv_bias(true);
  } else if (result.family == "mistral") {
    refuse(fields, "attention_bias", bias, "a mistral model has none");
  } else {
    model.set_qkv_bias(bias);
    result.output_bias = bias;
  }
  if (result.family == "qwen3") model.set_qk_norm(true);
  if (result.family == "qwen2" || result.family == "qwen3") read_qwen_windows(fields, config, model);
  if (result.family == "mistral") read_mistral_window(fields, config, result, model);
  if (result.family == "lckv-llama") {
    read_sharing(fields, result, model);
  } else {
    read_kv_sharing(fields, config, model);
  }
}

// Fields that say again what is known, or nothing about the model.
void touch_known_rest(JsonFields& fields) {
  for (const char* name :
       {"architectures", "torch_dtype", "dtype", "transformers_version", "rope_theta", "rope_scaling",
        "rope_parameters", "partial_rotary_factor", "sliding_window", "use_sliding_window", "max_window_layers"}) {
    fields.has(name);
  }
}

}  // namespace

HuggingFaceModel parse_huggingface_config(const std::string& json, const std::string& where) {
  const Json config = parse_json_object(json, where);
  JsonFields fields(config, where);
  HuggingFaceModel result;
  const auto name = fields.text("model_type");
  if (!name) reject_input("{} has no model_type", where);
  const Family& family = family_named(*name, where);
  result.family = *name;
  refuse_other_models(fields);
  proto::ModelConfig model;
  read_shape(fields, config, family, model);
  read_family(fields, config, result, model);
  read_rope(fields, model, result.unheeded);
  touch_known_rest(fields);
  result.kept_fields = fields.untouched();
  try {
    result.model = ModelConfig::from_proto(model);
  } catch (const InputError& error) {
    reject_input("{}: {}", where, error.what());
  }
  return result;
}

}  // namespace kvloom
