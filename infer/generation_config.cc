#include "infer/generation_config.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/convert/huggingface_origin.h"
#include "core/convert/json_fields.h"

namespace kvloom {
namespace {

// Those that are tokens of the model.
std::vector<std::int32_t> tokens_of(JsonFields& fields, const char* name, std::int64_t vocab) {
  std::vector<std::int32_t> tokens;
  for (const std::int64_t id : fields.integers(name).value_or(std::vector<std::int64_t>())) {
    if (id >= 0 && id < vocab) tokens.push_back(static_cast<std::int32_t>(id));
  }
  return tokens;
}

void read_tokens(JsonFields& fields, std::int64_t vocab, GenerationConfig& config) {
  if (config.ends.empty()) config.ends = tokens_of(fields, "eos_token_id", vocab);
  if (const auto start = tokens_of(fields, "bos_token_id", vocab); !config.start && !start.empty()) {
    config.start = start.front();
  }
}

std::optional<float> number_of(JsonFields& fields, const char* name) {
  const std::optional<double> value = fields.number(name);
  return value ? std::optional(static_cast<float>(*value)) : std::nullopt;
}

void read_sampling(JsonFields& fields, GenerationConfig& config) {
  config.temperature = number_of(fields, "temperature");
  config.top_k = fields.integer("top_k");
  config.top_p = number_of(fields, "top_p");
  config.min_p = number_of(fields, "min_p");
  config.repetition_penalty = number_of(fields, "repetition_penalty");
}

}  // namespace

GenerationConfig generation_config_of(const proto::HuggingFaceOrigin& origin, std::int64_t vocab,
                                      const std::string& where) {
  GenerationConfig config;
  const auto own = std::ranges::find(origin.files(), kGenerationConfig, &proto::CarriedFile::name);
  if (own != origin.files().end()) {
    const std::string place = fmt::format("{}: {}", where, kGenerationConfig);
    const nlohmann::ordered_json object = parse_json_object(own->content(), place);
    JsonFields fields(object, place);
    read_tokens(fields, vocab, config);
    read_sampling(fields, config);
  }
  if (!origin.config().empty()) {
    const std::string place = where + ": config.json";
    const nlohmann::ordered_json object = parse_json_object(origin.config(), place);
    JsonFields fields(object, place);
    read_tokens(fields, vocab, config);
  }
  return config;
}

}  // namespace kvloom
