#include "infer/text/prompt_line.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <set>

#include "core/convert/json_fields.h"
#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kMostTokens = std::int64_t{1} << 30;
constexpr std::int64_t kMostAnswers = 1024;
constexpr std::int64_t kMostAlternatives = 20;
constexpr std::size_t kMostStops = 64;
constexpr double kLeastLogprob = -9999;

struct Range {
  double low;
  double high;
  bool low_counts = true;
};

// The fields of one line, each taken once.
class LineFields {
 public:
  LineFields(const Json& object, std::string place) : object_(object), place_(std::move(place)) {}

  // Null as if it were not there.
  const Json* find(const char* name) {
    taken_.insert(name);
    const auto found = object_.find(name);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  std::optional<std::int64_t> integer(const char* name, std::int64_t low, std::int64_t high) {
    const Json* value = find(name);
    if (value == nullptr) return std::nullopt;
    const bool beyond = value->is_number_unsigned() && value->get<std::uint64_t>() > static_cast<std::uint64_t>(high);
    const bool fits = value->is_number_integer() && !beyond && *value >= low && *value <= high;
    if (!fits) reject(name, *value, fmt::format("a whole number of {} to {}", low, high));
    return value->get<std::int64_t>();
  }

  std::optional<float> number(const char* name, const Range& range) {
    const Json* value = find(name);
    if (value == nullptr) return std::nullopt;
    return in_range(name, *value, range);
  }

  float in_range(const std::string& name, const Json& value, const Range& range) const {
    const double number = value.is_number() ? value.get<double>() : NAN;
    const bool fits = number <= range.high && (range.low_counts ? number >= range.low : number > range.low);
    if (!fits) {
      reject(name, value,
             fmt::format("a number {} {} up to {}", range.low_counts ? "from" : "above", range.low, range.high));
    }
    return static_cast<float>(number);
  }

  std::optional<bool> truth(const char* name) {
    const Json* value = find(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_boolean()) reject(name, *value, "true or false");
    return value->get<bool>();
  }

  std::optional<std::uint64_t> seed(const char* name) {
    const Json* value = find(name);
    if (value == nullptr) return std::nullopt;
    const bool fits = value->is_number_integer() && (value->is_number_unsigned() || *value >= 0);
    if (!fits) reject(name, *value, "a whole number from 0 to 2^64 - 1");
    return value->get<std::uint64_t>();
  }

  void check_all_taken() const {
    for (const auto& [name, value] : object_.items()) {
      if (taken_.contains(name)) continue;
      reject_input("{}: '{}' is no field of a prompt; right are {}", place_, name.substr(0, 40),
                   fmt::join(taken_, ", "));
    }
  }

  const std::string& place() const { return place_; }
  [[noreturn]] void reject(const std::string& name, const Json& value, const std::string& right) const {
    const std::string shown = value.is_structured() ? fmt::format("an {}", value.type_name())
                                                    : value.dump(-1, ' ', true, Json::error_handler_t::replace);
    reject_input("{}: '{}' is {}; right is {}", place_, name, shown.substr(0, 60), right);
  }

 private:
  const Json& object_;
  std::string place_;
  std::set<std::string> taken_;
};

std::int32_t id_of(const LineFields& fields, const std::string& name, const Json& value, std::int64_t vocab) {
  const bool fits = value.is_number_integer() && value >= 0 && value < vocab;
  if (!fits) fields.reject(name, value, fmt::format("an id of 0 to {}", vocab - 1));
  return value.get<std::int32_t>();
}

TokenIds ids_of(const LineFields& fields, const Json& value, std::int64_t vocab) {
  if (!value.is_array() || value.empty()) fields.reject("tokens", value, "a list of one id or more");
  TokenIds ids;
  for (const Json& id : value) ids.push_back(id_of(fields, fmt::format("tokens[{}]", ids.size()), id, vocab));
  return ids;
}

void read_prompt(LineFields& fields, std::int64_t vocab, PromptLine& line) {
  const Json* text = fields.find("prompt");
  const Json* tokens = fields.find("tokens");
  const Json* messages = fields.find("messages");
  if ((text != nullptr) + (tokens != nullptr) + (messages != nullptr) != 1) {
    reject_input("{}: right is one of 'prompt', 'tokens' and 'messages'", fields.place());
  }
  if (text != nullptr) {
    if (!text->is_string()) fields.reject("prompt", *text, "a text");
    line.prompt = text->get<std::string>();
  } else if (tokens != nullptr) {
    line.prompt = ids_of(fields, *tokens, vocab);
  } else {
    line.prompt = chat_messages_of(*messages, fmt::format("{}: messages", fields.place()));
  }
}

std::optional<std::vector<std::string>> stops_of(LineFields& fields) {
  const Json* value = fields.find("stop");
  if (value == nullptr) return std::nullopt;
  const Json list = value->is_array() ? *value : Json::array({*value});
  if (list.size() > kMostStops)
    reject_input("{}: 'stop' has {} texts; right are {} at most", fields.place(), list.size(), kMostStops);
  std::vector<std::string> stops;
  for (const Json& stop : list) {
    if (!stop.is_string() || stop.get_ref<const std::string&>().empty()) {
      fields.reject("stop", stop, "a text that is not empty, or a list of such");
    }
    stops.push_back(stop.get<std::string>());
  }
  return stops;
}

// {"17": -100}: JSON has texts for keys.
std::vector<std::pair<std::int32_t, float>> bias_of(LineFields& fields, std::int64_t vocab) {
  const Json* value = fields.find("logit_bias");
  if (value == nullptr) return {};
  if (!value->is_object()) fields.reject("logit_bias", *value, "an object of ids with numbers");
  std::vector<std::pair<std::int32_t, float>> biases;
  std::set<std::int32_t> seen;
  for (const auto& [key, bias] : value->items()) {
    std::int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= vocab || !seen.insert(id).second) {
      reject_input("{}: 'logit_bias' has the key '{}'; right are ids of 0 to {}, each once", fields.place(),
                   key.substr(0, 40), vocab - 1);
    }
    biases.emplace_back(id, fields.in_range(fmt::format("logit_bias[{}]", key), bias, {-100, 100}));
  }
  return biases;
}

void read_options(LineFields& fields, std::int64_t vocab, PromptOptions& options) {
  constexpr double kMostTemperature = 1e6;
  options.max_new_tokens = fields.integer("max_new_tokens", 0, kMostTokens);
  options.temperature = fields.number("temperature", {0, kMostTemperature});
  options.top_k = fields.integer("top_k", -1, kMostTokens);
  if (options.top_k == -1) options.top_k = 0;
  options.top_p = fields.number("top_p", {0, 1, false});
  options.min_p = fields.number("min_p", {0, 1});
  options.repetition_penalty = fields.number("repetition_penalty", {0.01, 100});
  options.presence_penalty = fields.number("presence_penalty", {-2, 2});
  options.frequency_penalty = fields.number("frequency_penalty", {-2, 2});
  options.logit_bias = bias_of(fields, vocab);
  options.seed = fields.seed("seed");
  options.n = fields.integer("n", 1, kMostAnswers);
  options.stop = stops_of(fields);
  options.ignore_eos = fields.truth("ignore_eos");
  options.logprobs = fields.integer("logprobs", 0, kMostAlternatives);
  options.prompt_logprobs = fields.integer("prompt_logprobs", 0, kMostAlternatives);
}

// JSON has no infinity, and no client expects one.
Json finite(double logprob) { return logprob >= kLeastLogprob ? std::min(logprob, 0.0) : kLeastLogprob; }

Json logprobs_json(const std::vector<TokenLogprob>& logprobs) {
  Json list = Json::array();
  for (const TokenLogprob& one : logprobs) {
    Json top = Json::array();
    for (const auto& [token, logprob] : one.top) top.push_back({{"token", token}, {"logprob", finite(logprob)}});
    list.push_back({{"token", one.token},
                    {"logprob", one.logprob.has_value() ? finite(*one.logprob) : Json()},
                    {"top", std::move(top)}});
  }
  return list;
}

const char* name_of(AnswerEnd end) {
  constexpr std::array kReasons = {"stop", "length", "error"};
  return kReasons.at(static_cast<std::size_t>(end));
}

void add_answer(const AnswerLine& answer, Json& json) {
  json["text"] = answer.text;
  json["tokens"] = answer.tokens;
  json["finish_reason"] = name_of(answer.finish_reason);
  if (!answer.message.empty()) json["message"] = answer.message;
  if (answer.logprobs.has_value()) json["logprobs"] = logprobs_json(*answer.logprobs);
}

}  // namespace

PromptLine parse_prompt_line(std::string_view text, const std::string& place, std::int64_t vocab) {
  const Json object = parse_json_object(std::string(text), place);
  LineFields fields(object, place);
  PromptLine line;
  read_prompt(fields, vocab, line);
  read_options(fields, vocab, line.options);
  fields.check_all_taken();
  return line;
}

Json result_json(const ResultLine& result) {
  Json json = {{"index", result.index}};
  const bool single = result.answers.size() == 1;
  if (single) add_answer(result.answers.front(), json);
  json["prompt_tokens"] = result.prompt_tokens;
  json["passes_per_token"] = std::isfinite(result.passes_per_token) ? result.passes_per_token : 0.0;
  if (result.capped) json["capped"] = true;
  if (result.prompt_logprobs.has_value()) json["prompt_logprobs"] = logprobs_json(*result.prompt_logprobs);
  if (!single) {
    Json& choices = json["choices"] = Json::array();
    for (const AnswerLine& answer : result.answers) add_answer(answer, choices.emplace_back(Json::object()));
  }
  return json;
}

Json error_json(std::int64_t index, const std::string& message) {
  return {{"index", index},
          {"text", ""},
          {"tokens", Json::array()},
          {"finish_reason", name_of(AnswerEnd::kError)},
          {"message", message}};
}

std::string one_line_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::optional<std::int64_t> index_of_result_line(std::string_view line) {
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("index") || !json["index"].is_number_integer()) return std::nullopt;
  const auto index = json["index"].get<std::int64_t>();
  return index >= 0 ? std::optional(index) : std::nullopt;
}

}  // namespace kvloom
