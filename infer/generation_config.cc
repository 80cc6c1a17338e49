#include "infer/generation_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/convert/huggingface_origin.h"
#include "core/convert/json_fields.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

// The content of generation_config.json; null if the model has none.
const std::string* own_config(const proto::HuggingFaceOrigin& origin) {
  const auto own = std::ranges::find(origin.files(), kGenerationConfig, &proto::CarriedFile::name);
  return own == origin.files().end() ? nullptr : &own->content();
}

// Those that are tokens of the model.
std::vector<std::int32_t> tokens_of(JsonFields& fields, const char* name, std::int64_t vocab) {
  std::vector<std::int32_t> tokens;
  for (const std::int64_t id : fields.integers(name).value_or(std::vector<std::int64_t>())) {
    if (id >= 0 && id < vocab) tokens.push_back(static_cast<std::int32_t>(id));
  }
  return tokens;
}

void fill(std::optional<float>& setting, JsonFields& fields, const char* name) {
  if (setting) return;
  if (const std::optional<double> value = fields.number(name)) setting = static_cast<float>(*value);
}

// Python writes a whole number that was computed as 50.0.
void fill_top_k(std::optional<std::int64_t>& top_k, JsonFields& fields) {
  if (top_k) return;
  const std::optional<double> value = fields.number("top_k");
  if (!value) return;
  constexpr double kMost = 1 << 30;
  if (*value < -1 || *value > kMost || *value != std::floor(*value)) {
    reject_input("{}: top_k is {}; right is a whole number from 1, or 0 or -1 for all", fields.where(), *value);
  }
  top_k = std::max<std::int64_t>(0, static_cast<std::int64_t>(*value));
}

void fill_temperature(std::optional<float>& temperature, JsonFields& fields) {
  if (temperature) return;
  const bool samples = fields.boolean("do_sample", false);
  temperature = samples ? static_cast<float>(fields.number("temperature", 1)) : 0.0f;
}

bool is_complete(const SamplingSettings& settings) {
  return settings.temperature && settings.top_k && settings.top_p && settings.min_p && settings.repetition_penalty;
}

}  // namespace

TextEnds text_ends_of(const proto::HuggingFaceOrigin& origin, std::int64_t vocab, const std::string& where) {
  const std::string* own = own_config(origin);
  if (own == nullptr && origin.config().empty()) return {};
  const std::string place = fmt::format("{}: {}", where, own == nullptr ? kConfigJson : kGenerationConfig);
  const Json object = parse_json_object(own == nullptr ? origin.config() : *own, place);
  JsonFields fields(object, place);
  TextEnds ends{.ends = tokens_of(fields, "eos_token_id", vocab), .start = {}};
  if (const auto start = tokens_of(fields, "bos_token_id", vocab); !start.empty()) ends.start = start.front();
  return ends;
}

SamplingSettings with_sampling_of(const proto::HuggingFaceOrigin& origin, SamplingSettings given,
                                  const std::string& where) {
  const std::string* own = own_config(origin);
  if (own == nullptr || is_complete(given)) return given;
  const std::string place = fmt::format("{}: {}", where, kGenerationConfig);
  const Json object = parse_json_object(*own, place);
  JsonFields fields(object, place);
  fill_temperature(given.temperature, fields);
  fill_top_k(given.top_k, fields);
  fill(given.top_p, fields, "top_p");
  fill(given.min_p, fields, "min_p");
  fill(given.repetition_penalty, fields, "repetition_penalty");
  return given;
}

}  // namespace kvloom
