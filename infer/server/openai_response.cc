#include "infer/server/openai_response.h"

#include <fmt/format.h>

#include <algorithm>

#include "infer/unicode.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

// JSON has no infinity.
constexpr float kLeastLogProbability = -9999.0F;

double finite(float log_probability) { return static_cast<double>(std::max(log_probability, kLeastLogProbability)); }

std::string written(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json usage_json(const AnswerUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

Json text_or_null(const char* text) { return text == nullptr ? Json() : Json(text); }

std::string bytes_of(const Tokenizer& tokenizer, std::int32_t token) {
  return token < tokenizer.vocab() ? tokenizer.bytes_of(token) : std::string();
}

Json byte_list(const std::string& bytes) {
  Json list = Json::array();
  for (const char byte : bytes) list.push_back(static_cast<int>(static_cast<unsigned char>(byte)));
  return list;
}

}  // namespace

std::string shown_token(const Tokenizer& tokenizer, std::int32_t token) {
  std::string bytes = bytes_of(tokenizer, token);
  if (is_well_formed(bytes)) return bytes;
  std::string shown = "bytes:";
  for (const char byte : bytes) shown += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  return shown;
}

Json AnswerWriter::head_json(const char* object) const {
  return {{"id", head_.id}, {"object", object}, {"created", head_.created}, {"model", head_.model}};
}

Json AnswerWriter::scores_json(const std::vector<PlacedScore>& scores) const {
  if (!scored_) return {};
  return head_.endpoint == Endpoint::kChat ? chat_scores(scores) : completion_scores(scores);
}

Json AnswerWriter::chat_scores(const std::vector<PlacedScore>& scores) const {
  const auto entry = [&](std::int32_t token, float log_probability) -> Json {
    return {{"token", shown_token(tokenizer_, token)},
            {"logprob", finite(log_probability)},
            {"bytes", byte_list(bytes_of(tokenizer_, token))}};
  };
  Json content = Json::array();
  for (const PlacedScore& placed : scores) {
    Json one = entry(placed.score.token, placed.score.log_probability);
    one["top_logprobs"] = Json::array();
    for (const auto& [token, log_probability] : placed.score.top) {
      one["top_logprobs"].push_back(entry(token, log_probability));
    }
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

// The chosen token is always among the likeliest, and of tokens with the same text the likeliest counts.
Json AnswerWriter::completion_scores(const std::vector<PlacedScore>& scores) const {
  Json tokens = Json::array();
  Json chosen = Json::array();
  Json top = Json::array();
  Json offsets = Json::array();
  for (const PlacedScore& placed : scores) {
    const std::string text = shown_token(tokenizer_, placed.score.token);
    tokens.push_back(text);
    offsets.push_back(placed.offset);
    if (!placed.has_score) {
      chosen.push_back(nullptr);
      top.push_back(nullptr);
      continue;
    }
    chosen.push_back(finite(placed.score.log_probability));
    Json likeliest = Json::object();
    const auto add = [&](const std::string& name, float log_probability) {
      const double value = finite(log_probability);
      if (const auto found = likeliest.find(name); found == likeliest.end() || found->get<double>() < value) {
        likeliest[name] = value;
      }
    };
    for (const auto& [token, log_probability] : placed.score.top) add(shown_token(tokenizer_, token), log_probability);
    add(text, placed.score.log_probability);
    top.push_back(std::move(likeliest));
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(chosen)},
          {"top_logprobs", std::move(top)},
          {"text_offset", std::move(offsets)}};
}

std::string AnswerWriter::whole(const std::vector<ChoicePart>& choices, const AnswerUsage& usage) const {
  const bool chat = head_.endpoint == Endpoint::kChat;
  Json answer = head_json(chat ? "chat.completion" : "text_completion");
  Json list = Json::array();
  for (const ChoicePart& part : choices) {
    Json choice = {{"index", part.index}};
    if (chat) {
      choice["message"] = {{"role", "assistant"}, {"content", part.text}, {"refusal", nullptr}};
    } else {
      choice["text"] = part.text;
    }
    choice["logprobs"] = scores_json(part.scores);
    choice["finish_reason"] = text_or_null(part.finish);
    list.push_back(std::move(choice));
  }
  answer["choices"] = std::move(list);
  answer["usage"] = usage_json(usage);
  return written(answer);
}

std::string AnswerWriter::event_of(Json choice) const {
  const bool chat = head_.endpoint == Endpoint::kChat;
  Json event = head_json(chat ? "chat.completion.chunk" : "text_completion");
  event["choices"] = Json::array({std::move(choice)});
  if (usage_in_chunks_) event["usage"] = nullptr;
  return "data: " + written(event) + "\n\n";
}

std::string AnswerWriter::role_chunk(int index) const {
  return event_of({{"index", index},
                   {"delta", {{"role", "assistant"}, {"content", ""}}},
                   {"logprobs", nullptr},
                   {"finish_reason", nullptr}});
}

std::string AnswerWriter::chunk(const ChoicePart& part) const {
  Json choice = {{"index", part.index}};
  if (head_.endpoint == Endpoint::kChat) {
    choice["delta"] = {{"content", part.text}};
  } else {
    choice["text"] = part.text;
  }
  choice["logprobs"] = scores_json(part.scores);
  choice["finish_reason"] = nullptr;
  return event_of(std::move(choice));
}

std::string AnswerWriter::finish_chunk(int index, const char* finish) const {
  Json choice = {{"index", index}};
  if (head_.endpoint == Endpoint::kChat) {
    choice["delta"] = Json::object();
  } else {
    choice["text"] = "";
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = finish;
  return event_of(std::move(choice));
}

std::string AnswerWriter::usage_chunk(const AnswerUsage& usage) const {
  Json event = head_json(head_.endpoint == Endpoint::kChat ? "chat.completion.chunk" : "text_completion");
  event["choices"] = Json::array();
  event["usage"] = usage_json(usage);
  return "data: " + written(event) + "\n\n";
}

}  // namespace kvloom
