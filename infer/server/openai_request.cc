#include "infer/server/openai_request.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "infer/server/openai_fields.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::int64_t kMany = std::int64_t{1} << 31;
constexpr std::size_t kDeepest = 100;

std::int32_t token_id(const Json& value, const char* field) {
  if (!value.is_number_integer() || value < 0 || value >= kMany) {
    reject_field(field, "holds {}; right are the ids of tokens, whole numbers from 0", value.dump().substr(0, 40));
  }
  return value.get<std::int32_t>();
}

std::vector<std::string> stops_of(const Fields& fields, const RequestLimits& limits) {
  const Json& value = fields.at("stop");
  if (value.is_null()) return {};
  const Json list = value.is_array() ? value : Json::array({value});
  if (list.size() > limits.stops) reject_field("stop", "has {} texts; right are up to {}", list.size(), limits.stops);
  std::vector<std::string> stops;
  for (const Json& stop : list) {
    if (!stop.is_string()) reject_field("stop", "holds a {}; right is a text, or a list of them", stop.type_name());
    stops.push_back(stop.get<std::string>());
    if (stops.back().empty() || stops.back().size() > limits.stop_bytes) {
      reject_field("stop", "holds a text of {} bytes; right are 1 to {}", stops.back().size(), limits.stop_bytes);
    }
  }
  return stops;
}

std::vector<std::pair<std::int32_t, float>> bias_of(const Fields& fields) {
  const Json& value = fields.at("logit_bias");
  if (value.is_null()) return {};
  if (!value.is_object()) reject_field("logit_bias", "is a {}; right is an object", value.type_name());
  std::vector<std::pair<std::int32_t, float>> bias;
  for (const auto& [key, amount] : value.items()) {
    std::int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0) {
      reject_field("logit_bias", "has the key '{}'; right are ids of tokens", key.substr(0, 40));
    }
    if (!amount.is_number()) reject_field("logit_bias", "of {} is a {}; right is a number", id, amount.type_name());
    bias.emplace_back(id, amount.get<float>());
  }
  return bias;
}

template <typename T>
void set(T& field, const std::optional<double>& given) {
  if (given.has_value()) field = static_cast<T>(*given);
}

// "sampling: temperature is -1; ..." without the part that says where.
[[noreturn]] void reject_sampling(const InputError& error) {
  std::string message = error.what();
  const std::string prefix = "sampling: ";
  if (message.starts_with(prefix)) message.erase(0, prefix.size());
  const std::string field = message.substr(0, message.find(' '));
  throw ApiError(400, message, field);
}

SamplingParameters sampling_of(const Fields& fields, const SamplingSettings& otherwise) {
  SamplingParameters sampling;
  sampling.temperature = otherwise.temperature.value_or(1.0F);
  sampling.top_k = otherwise.top_k.value_or(0);
  sampling.top_p = otherwise.top_p.value_or(1.0F);
  sampling.min_p = otherwise.min_p.value_or(0.0F);
  sampling.repetition_penalty = otherwise.repetition_penalty.value_or(1.0F);
  set(sampling.temperature, fields.number("temperature"));
  set(sampling.top_p, fields.number("top_p"));
  set(sampling.min_p, fields.number("min_p"));
  set(sampling.repetition_penalty, fields.number("repetition_penalty"));
  set(sampling.presence_penalty, fields.number("presence_penalty"));
  set(sampling.frequency_penalty, fields.number("frequency_penalty"));
  if (const auto top_k = fields.integer("top_k", -1, kMany)) sampling.top_k = std::max<std::int64_t>(*top_k, 0);
  sampling.logit_bias = bias_of(fields);
  try {
    check_sampling(sampling);
  } catch (const ApiError&) {
    throw;
  } catch (const InputError& error) {
    reject_sampling(error);
  }
  return sampling;
}

// The server answers with text alone.
void check_format(const Fields& fields) {
  const Json& format = fields.at("response_format");
  if (format.is_null()) return;
  const Json type = format.is_object() ? Json(format.value("type", Json())) : Json();
  if (type == "text") return;
  reject_field("response_format",
               "{} is not done by this server: it constrains no text to a grammar; right is {{\"type\": \"text\"}}",
               type.dump().substr(0, 40));
}

CommonRequest common_of(const Fields& fields, const SamplingSettings& sampling, const RequestLimits& limits) {
  CommonRequest request;
  request.model = fields.text("model").value_or("");
  request.stream = fields.flag("stream").value_or(false);
  const Json& options = fields.at("stream_options");
  if (!options.is_null()) {
    if (!options.is_object()) reject_field("stream_options", "is a {}; right is an object", options.type_name());
    if (!request.stream) reject_field("stream_options", "is for streams; right is with \"stream\": true");
    request.include_usage = Fields(options).flag("include_usage").value_or(false);
  }
  request.n = static_cast<int>(fields.integer("n", 1, limits.texts).value_or(1));
  if (const auto best = fields.integer("best_of", 1, kMany); best.value_or(request.n) != request.n) {
    reject_field("best_of", "is {}; this server does not choose among texts, and right is n, {}", *best, request.n);
  }
  request.stops = stops_of(fields, limits);
  if (const Json& ids = fields.at("stop_token_ids"); !ids.is_null()) {
    if (!ids.is_array()) reject_field("stop_token_ids", "is a {}; right is a list of ids", ids.type_name());
    for (const Json& id : ids) request.stop_ids.push_back(token_id(id, "stop_token_ids"));
  }
  request.ignore_ends = fields.flag("ignore_eos").value_or(false);
  request.sampling = sampling_of(fields, sampling);
  constexpr auto kLeast = std::numeric_limits<std::int64_t>::min();
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  if (const auto seed = fields.integer("seed", kLeast, kMost)) request.seed = static_cast<std::uint64_t>(*seed);
  request.priority = static_cast<int>(fields.integer("priority", -kMany / 2, kMany / 2).value_or(0));
  check_format(fields);
  return request;
}

std::vector<std::int32_t> ids_of(const Json& list) {
  std::vector<std::int32_t> ids;
  ids.reserve(list.size());
  for (const Json& id : list) ids.push_back(token_id(id, "prompt"));
  return ids;
}

std::vector<PromptInput> prompts_of(const Json& value, const RequestLimits& limits) {
  std::vector<PromptInput> prompts;
  const auto add_text = [&](const Json& text) {
    if (text.get_ref<const std::string&>().size() > limits.prompt_bytes) {
      reject_field("prompt", "is too long; right is up to {} bytes", limits.prompt_bytes);
    }
    prompts.emplace_back(text.get<std::string>());
  };
  if (value.is_string()) {
    add_text(value);
  } else if (value.is_array() && !value.empty() && value.front().is_number()) {
    prompts.emplace_back(ids_of(value));
  } else if (value.is_array() && !value.empty()) {
    for (const Json& one : value) {
      if (one.is_string()) {
        add_text(one);
      } else if (one.is_array() && !one.empty()) {
        prompts.emplace_back(ids_of(one));
      } else {
        reject_field("prompt", "holds a {}; right is a text, a list of ids, or a list of these", one.type_name());
      }
    }
  } else {
    reject_field("prompt", "is {}; right is a text, a list of ids, or a list of these",
                 value.is_null()    ? "not there"
                 : value.is_array() ? "an empty list"
                                    : value.type_name());
  }
  return prompts;
}

std::vector<ChatMessage> messages_of(const Json& value, const RequestLimits& limits) {
  if (!value.is_array() || value.empty()) reject_field("messages", "is no list of messages, or an empty one");
  if (value.size() > limits.messages) {
    reject_field("messages", "are {}; right are up to {}", value.size(), limits.messages);
  }
  std::vector<ChatMessage> messages;
  try {
    messages = chat_messages_of(value, "messages");
  } catch (const InputError& error) {
    throw ApiError(400, error.what(), "messages");
  }
  std::size_t bytes = 0;
  for (ChatMessage& message : messages) {
    if (message.role == "developer") message.role = "system";  // OpenAI's newer name
    bytes += message.content.value_or("").size();
  }
  if (bytes > limits.prompt_bytes) {
    reject_field("messages", "are too long; right is up to {} bytes", limits.prompt_bytes);
  }
  return messages;
}

Json tools_of(const Fields& fields) {
  const Json& choice = fields.at("tool_choice");
  if (!choice.is_null() && choice != "none" && choice != "auto") {
    reject_field("tool_choice", "is {}; this server makes the model call no tool, and right is \"none\" or \"auto\"",
                 choice.dump().substr(0, 80));
  }
  const Json& tools = fields.at("tools");
  if (tools.is_null() || choice == "none") return {};
  if (!tools.is_array()) reject_field("tools", "is a {}; right is a list", tools.type_name());
  return tools.empty() ? Json() : tools;
}

// Copying and writing JSON recurses, so what is parsed is not deep.
std::size_t nesting_of(const std::string& body) {
  std::size_t deepest = 0;
  std::size_t depth = 0;
  bool in_text = false;
  for (std::size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_text) {
      if (c == '\\') ++i;
      if (c == '"') in_text = false;
    } else if (c == '"') {
      in_text = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

Json parse_body(const std::string& body) {
  if (nesting_of(body) > kDeepest) throw ApiError(400, fmt::format("the body is nested more than {} deep", kDeepest));
  try {
    Json parsed = Json::parse(body);
    if (!parsed.is_object()) throw ApiError(400, "the body is no JSON object");
    return parsed;
  } catch (const Json::exception& error) {
    std::string what = error.what();
    what = what.substr(std::min(what.find("] ") + 2, what.size())).substr(0, 200);
    throw ApiError(400, "the body is no JSON: " + what);
  }
}

CompletionRequest parse_completion(const Json& body, const SamplingSettings& sampling, const RequestLimits& limits) {
  const Fields fields(body);
  CompletionRequest request{.common = common_of(fields, sampling, limits), .prompts = {}};
  request.prompts = prompts_of(fields.at("prompt"), limits);
  const auto texts = std::ssize(request.prompts) * request.common.n;
  if (texts > limits.texts) reject_field("n", "and the prompts make {} texts; right are up to {}", texts, limits.texts);
  request.common.max_tokens = fields.integer("max_tokens", 0, kMany).value_or(16);
  request.echo = fields.flag("echo").value_or(false);
  if (const auto count = fields.integer("logprobs", 0, 5)) request.common.alternatives = static_cast<int>(*count);
  if (!fields.text("suffix").value_or("").empty()) reject_field("suffix", "is not done by this server; right is none");
  return request;
}

ChatRequest parse_chat(const Json& body, const SamplingSettings& sampling, const RequestLimits& limits) {
  const Fields fields(body);
  ChatRequest request{.common = common_of(fields, sampling, limits), .conversation = {}};
  request.conversation.messages = messages_of(fields.at("messages"), limits);
  request.conversation.tools = tools_of(fields);
  request.conversation.variables = fields.at("chat_template_kwargs");
  if (const Json& variables = request.conversation.variables; !variables.is_null() && !variables.is_object()) {
    reject_field("chat_template_kwargs", "is a {}; right is an object", variables.type_name());
  }
  if (!fields.flag("add_generation_prompt").value_or(true)) request.conversation.header = AnswerHeader::kLeftOut;
  request.common.max_tokens = fields.integer("max_completion_tokens", 1, kMany);
  if (!request.common.max_tokens) request.common.max_tokens = fields.integer("max_tokens", 1, kMany);
  const bool wanted = fields.flag("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", 0, 20);
  if (top.value_or(0) > 0 && !wanted) reject_field("top_logprobs", "is for logprobs; right is with \"logprobs\": true");
  if (wanted) request.common.alternatives = static_cast<int>(top.value_or(0));
  return request;
}

}  // namespace kvloom
