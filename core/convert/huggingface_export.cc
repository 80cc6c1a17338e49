// A ModelConfig as config.json.
#include <algorithm>
#include <array>
#include <utility>

#include "core/convert/huggingface_config.h"
#include "core/convert/huggingface_rope.h"
#include "core/convert/json_fields.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

std::int64_t windowed_layers(const ModelConfig& model) {
  std::int64_t count = 0;
  for (int layer = 0; layer < model.layers; ++layer) count += model.kv_map.window(layer) > 0 ? 1 : 0;
  return count;
}

// Every layer a KV layer does not yet mean that each reads its own.
bool reads_own(const ModelConfig& model) {
  for (int layer = 0; layer < model.layers; ++layer) {
    for (const KvPart part : kKvParts) {
      if (model.kv_map.source(part, layer) != layer) return false;
    }
  }
  return true;
}

// Why a family cannot say this model; empty if it can.
std::string obstacle(std::string_view family, const ModelConfig& model) {
  if (family == "lckv-llama") return model.qk_norm ? "lckv-llama has no norm of queries and keys" : "";
  if (!reads_own(model)) return fmt::format("{} has no sharing of keys and values", family);
  if (model.kv_map.diagonal() == Diagonal::kHidden) return fmt::format("{} sees its own position", family);
  if (model.qk_norm != (family == "qwen3")) return fmt::format("norms of queries and keys are qwen3's");
  const std::int64_t windowed = windowed_layers(model);
  if (family == "llama" && windowed > 0) return "llama has no windows";
  if (family == "mistral" && windowed > 0 && windowed < model.layers) return "mistral has one window for all layers";
  if (family == "mistral" && model.qkv_bias) return "mistral has no biases";
  if (family == "qwen2" && !model.qkv_bias) return "qwen2 has biases";
  return "";
}

std::string architecture_of(const std::string& family) {
  if (family == "llama") return "LlamaForCausalLM";
  if (family == "mistral") return "MistralForCausalLM";
  if (family == "qwen2") return "Qwen2ForCausalLM";
  if (family == "qwen3") return "Qwen3ForCausalLM";
  return "LCKVLlamaForCausalLM";
}

std::string_view torch_name_of(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return "bfloat16";
    case DType::kF16:
      return "float16";
    case DType::kF64:
      return "float64";
    default:
      return "float32";
  }
}

// The shortest decimal that is this float.
double as_written(float value) { return std::stod(fmt::format("{}", value)); }

void write_windows(const ModelConfig& model, Json& config) {
  const bool any = windowed_layers(model) > 0;
  config["use_sliding_window"] = any;
  config["sliding_window"] = any ? Json(model.window) : Json(nullptr);
  Json types = Json::array();
  std::int64_t first = model.layers;
  for (int layer = 0; layer < model.layers; ++layer) {
    const bool windowed = model.kv_map.window(layer) > 0;
    if (windowed) first = std::min<std::int64_t>(first, layer);
    types.push_back(windowed ? "sliding_attention" : "full_attention");
  }
  config["max_window_layers"] = first;
  config["layer_types"] = std::move(types);
}

void write_family(const std::string& family, const ModelConfig& model, const Passes& passes, Json& config) {
  if (family == "qwen2" || family == "qwen3") write_windows(model, config);
  if (family == "mistral") {
    config["sliding_window"] = windowed_layers(model) > 0 ? Json(model.window) : Json(nullptr);
  }
  if (family == "llama" || family == "qwen3" || family == "lckv-llama") config["attention_bias"] = model.qkv_bias;
  if (family != "lckv-llama") return;
  config["layer_types"] = model.kv_map.explicit_form();
  if (model.kv_map.diagonal() == Diagonal::kHidden) config["force_nodiag"] = true;
  config["forward_passes"] = passes.without_gradient;
  config["backward_passes"] = passes.with_gradient;
  if (model.window > 0) config["sliding_window"] = model.window;
}

Json config_of(const std::string& family, const ModelConfig& model, const Passes& passes, DType dtype) {
  Json config = {{"architectures", {architecture_of(family)}},
                 {"model_type", family},
                 {"vocab_size", model.vocab},
                 {"hidden_size", model.hidden},
                 {"intermediate_size", model.ffn},
                 {"num_hidden_layers", model.layers},
                 {"num_attention_heads", model.heads},
                 {"num_key_value_heads", model.kv_heads},
                 {"head_dim", model.head_dim},
                 {"hidden_act", "silu"},
                 {"max_position_embeddings", model.context},
                 {"initializer_range", model.initializer_range},
                 {"rms_norm_eps", as_written(model.norm_epsilon)},
                 {"rope_theta", model.rope_theta},
                 {"rope_scaling", rope_scaling_json(model)},
                 {"tie_word_embeddings", model.tied_embeddings},
                 {"torch_dtype", torch_name_of(dtype)}};
  write_family(family, model, passes, config);
  return config;
}

bool says_the_same(const HuggingFaceModel& origin, const std::string& family, const ModelConfig& model,
                   const Passes& passes) {
  const bool same_passes =
      origin.passes.without_gradient == passes.without_gradient && origin.passes.with_gradient == passes.with_gradient;
  return origin.family == family && (family != "lckv-llama" || same_passes) &&
         origin.model.to_proto().SerializeAsString() == model.to_proto().SerializeAsString();
}

// `origin` with another dtype, if that is another.
std::string with_dtype(const std::string& origin, const Json& parsed, DType dtype) {
  for (const char* name : {"torch_dtype", "dtype"}) {
    const auto found = parsed.find(name);
    if (found == parsed.end()) continue;
    if (*found == torch_name_of(dtype)) return origin;
    Json changed = parsed;
    changed[name] = torch_name_of(dtype);
    return changed.dump(2) + "\n";
  }
  return origin;
}

}  // namespace

std::string family_for(const ModelConfig& model, const std::string& own) {
  if (!own.empty() && obstacle(own, model).empty()) return own;
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    if (obstacle(family, model).empty() && !has_output_bias(family, model)) return family;
  }
  if (const std::string why = obstacle("lckv-llama", model); !why.empty()) {
    reject_input("no family of Hugging Face says this model: it shares or windows keys and values, and {}", why);
  }
  return "lckv-llama";
}

bool has_output_bias(const std::string& family, const ModelConfig& model) {
  return model.qkv_bias && (family == "llama" || family == "qwen3" || family == "lckv-llama");
}

std::string huggingface_config(const std::string& family, const ModelConfig& model, const Passes& passes, DType dtype,
                               const std::string& origin) {
  if (const std::string why = obstacle(family, model); !why.empty()) {
    reject_input("this model is no {}: {}", family, why);
  }
  Json config = config_of(family, model, passes, dtype);
  if (origin.empty()) return config.dump(2) + "\n";
  const std::string where = "the model's own config.json";
  const HuggingFaceModel from = parse_huggingface_config(origin, where);
  const Json parsed = parse_json_object(origin, where);
  if (says_the_same(from, family, model, passes)) return with_dtype(origin, parsed, dtype);
  for (const std::string& name : from.kept_fields) config[name] = parsed[name];
  return config.dump(2) + "\n";
}

}  // namespace kvloom
