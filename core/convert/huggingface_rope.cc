#include "core/convert/huggingface_rope.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;
using Scaling = proto::RopeScaling;

Scaling::Kind kind_named(const std::string& name, const std::string& where) {
  if (name == "default") return Scaling::NONE;
  if (name == "linear") return Scaling::LINEAR;
  if (name == "dynamic") return Scaling::DYNAMIC;
  if (name == "llama3") return Scaling::LLAMA3;
  if (name == "yarn") return Scaling::YARN;
  reject_input(
      "{}: scaling '{}' of the rotary embedding is not supported; default, linear, dynamic, llama3 and yarn are", where,
      name);
}

double required(JsonFields& fields, const std::string& name) {
  const auto value = fields.number(name);
  if (!value) reject_input("{} has no {}", fields.where(), name);
  return *value;
}

// YaRN's factor on cosines and sines as DeepSeek writes it, by two scales.
double scale_ratio(double factor, double scale, double scale_all) {
  const auto of = [&](double by) { return factor <= 1 ? 1 : 0.1 * by * std::log(factor) + 1; };
  return of(scale) / of(scale_all);
}

// Where transformers 5 and 4 read it: beside the scaling, or in it.
std::optional<std::uint32_t> original_context(JsonFields& config, JsonFields& fields) {
  constexpr const char* kName = "original_max_position_embeddings";
  const auto inside = fields.integer(kName);
  const auto beside = config.integer(kName);
  if (inside && beside && *inside != *beside) {
    reject_input("{}: {} is {}, and beside it {}; right is one of them", fields.where(), kName, *inside, *beside);
  }
  const auto original = beside ? beside : inside;
  if (original && *original == 0) reject_input("{}: {} is 0", fields.where(), kName);
  return original;
}

void read_yarn(JsonFields& fields, const proto::ModelConfig& model, Scaling& scaling) {
  // An absent factor is what the contexts say.
  scaling.set_factor(fields.number("factor", static_cast<double>(model.context()) / scaling.original_context()));
  scaling.set_beta_fast(fields.number("beta_fast", 0));
  scaling.set_beta_slow(fields.number("beta_slow", 0));
  scaling.set_exact_range(!fields.boolean("truncate", true));
  const double scale = fields.number("mscale", 0);
  const double scale_all = fields.number("mscale_all_dim", 0);
  const auto given = fields.number("attention_factor");
  if (given && !(*given > 0)) reject_input("{}: attention_factor {} is not positive", fields.where(), *given);
  if (given) {
    scaling.set_attention_factor(*given);
  } else if (scale != 0 && scale_all != 0) {
    scaling.set_attention_factor(scale_ratio(scaling.factor(), scale, scale_all));
  }
}

// Hunyuan's way to stretch, whatever the length: a larger base. `factor` then says nothing.
void stretch_base(JsonFields& fields, double alpha, proto::ModelConfig& model) {
  const std::uint32_t dim = model.head_dim() != 0 ? model.head_dim() : model.hidden() / std::max(1U, model.heads());
  if (!(alpha > 0) || dim < 4) {
    reject_input("{}: alpha {} with heads of {}; right is a positive one, and heads of 4 or more", fields.where(),
                 alpha, dim);
  }
  if (fields.number("factor", 1) != 1) {
    reject_input("{}: alpha and factor both stretch; right is one of them, or a factor of 1", fields.where());
  }
  for (const char* name : {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "original_max_position_embeddings"}) {
    fields.has(name);  // they stand in every Hunyuan folder and mean nothing to this
  }
  model.set_rope_theta(model.rope_theta() * std::pow(alpha, dim / (dim - 2.0)));
}

void read_kind(JsonFields& config, JsonFields& fields, Scaling::Kind kind, proto::ModelConfig& model) {
  if (kind == Scaling::NONE) return;
  if (const auto alpha = kind == Scaling::DYNAMIC ? fields.number("alpha") : std::nullopt) {
    return stretch_base(fields, *alpha, model);
  }
  Scaling& scaling = *model.mutable_rope_scaling();
  scaling.set_kind(kind);
  if (kind == Scaling::LLAMA3 || kind == Scaling::YARN) {
    scaling.set_original_context(original_context(config, fields).value_or(model.context()));
  } else {
    // Both count from max_position_embeddings, whatever they are told.
    fields.integer("original_max_position_embeddings");
  }
  if (kind == Scaling::YARN) {
    read_yarn(fields, model, scaling);
  } else {
    scaling.set_factor(required(fields, "factor"));
  }
  if (kind == Scaling::LLAMA3) {
    scaling.set_low_frequency_factor(required(fields, "low_freq_factor"));
    scaling.set_high_frequency_factor(required(fields, "high_freq_factor"));
  }
}

// Keys of no meaning are passed over as in transformers, with a word. An object is another matter: rotation by kind of
// layer.
void pass_over_unknown(JsonFields& fields, const std::string& kind, std::vector<std::string>& unheeded) {
  for (const std::string& name : fields.untouched()) {
    if (!fields.has(name)) continue;
    if (fields.is_object(name)) {
      reject_input("{}: {}: a rotary embedding of its own for some layers is not supported", fields.where(), name);
    }
    unheeded.push_back(fmt::format("{}: {} means nothing to scaling '{}'", fields.where(), name, kind));
  }
}

void read_scaling(JsonFields& config, JsonFields& fields, proto::ModelConfig& model,
                  std::vector<std::string>& unheeded) {
  const auto newer = fields.text("rope_type");
  const auto older = fields.text("type");
  const std::string kind = newer ? *newer : older.value_or("default");
  if (fields.number("partial_rotary_factor", 1) != 1) {
    reject_input("{}: partial_rotary_factor: rotating a part of each head is not supported", fields.where());
  }
  if (const auto theta = fields.number("rope_theta")) model.set_rope_theta(*theta);
  read_kind(config, fields, kind_named(kind, fields.where()), model);
  pass_over_unknown(fields, kind, unheeded);
}

// The object of that name; null where there is none or it is empty, which says nothing.
const Json* filled_object(JsonFields& fields, const std::string& name) {
  const Json* object = fields.object(name);
  return object == nullptr || object->empty() ? nullptr : object;
}

// Beside rope_scaling, which is taken, rope_parameters may not want another base.
void check_passed_over(JsonFields& fields, const Json& parameters, const proto::ModelConfig& model) {
  JsonFields inner(parameters, fields.where() + ": rope_parameters");
  const auto theta = inner.number("rope_theta");
  if (!theta || *theta == model.rope_theta()) return;
  reject_input(
      "{}: rope_theta is {} in rope_parameters and {} for rope_scaling, which is taken where both stand; right "
      "is to write rope_theta into rope_scaling",
      fields.where(), *theta, model.rope_theta());
}

}  // namespace

void read_rope(JsonFields& fields, proto::ModelConfig& model, std::vector<std::string>& unheeded) {
  model.set_rope_theta(fields.number("rope_theta", 10000));
  if (!(model.rope_theta() > 0)) reject_input("{}: rope_theta {} is not positive", fields.where(), model.rope_theta());
  if (fields.number("partial_rotary_factor", 1) != 1) {
    reject_input("{}: partial_rotary_factor: rotating a part of each head is not supported", fields.where());
  }
  const Json* older = filled_object(fields, "rope_scaling");
  const Json* newer = filled_object(fields, "rope_parameters");
  const Json* taken = older != nullptr ? older : newer;
  if (taken == nullptr) return;
  JsonFields inner(*taken, fields.where() + (older != nullptr ? ": rope_scaling" : ": rope_parameters"));
  read_scaling(fields, inner, model, unheeded);
  if (older == nullptr || newer == nullptr) return;
  check_passed_over(fields, *newer, model);
  if (*older != *newer) unheeded.push_back(fields.where() + ": rope_parameters, since rope_scaling is given");
}

Json rope_scaling_json(const ModelConfig& model) {
  const Scaling& scaling = model.rope_scaling;
  Json json;
  switch (scaling.kind()) {
    case Scaling::LINEAR:
      return {{"rope_type", "linear"}, {"factor", scaling.factor()}};
    case Scaling::DYNAMIC:
      if (scaling.original_context() != 0 && scaling.original_context() != model.context) {
        reject_input(
            "model.rope_scaling.original_context: {}; dynamic scaling of Hugging Face counts from the context {}",
            scaling.original_context(), model.context);
      }
      return {{"rope_type", "dynamic"}, {"factor", scaling.factor()}};
    case Scaling::LLAMA3:
      json = {{"rope_type", "llama3"},
              {"factor", scaling.factor()},
              {"low_freq_factor", scaling.low_frequency_factor()},
              {"high_freq_factor", scaling.high_frequency_factor()}};
      break;
    case Scaling::YARN:
      json = {{"rope_type", "yarn"}, {"factor", scaling.factor()}};
      if (scaling.beta_fast() > 0) json["beta_fast"] = scaling.beta_fast();
      if (scaling.beta_slow() > 0) json["beta_slow"] = scaling.beta_slow();
      if (scaling.attention_factor() > 0) json["attention_factor"] = scaling.attention_factor();
      if (scaling.exact_range()) json["truncate"] = false;
      break;
    default:
      return nullptr;
  }
  const std::int64_t original = scaling.original_context();
  json["original_max_position_embeddings"] = original > 0 ? original : model.context;
  return json;
}

}  // namespace kvloom
