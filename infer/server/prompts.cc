#include "infer/server/prompts.h"

#include <algorithm>

#include "infer/server/openai_fields.h"

namespace kvloom {
namespace {

std::vector<ChatMessage> messages_of(const nlohmann::ordered_json& messages) {
  std::vector<ChatMessage> list;
  for (const auto& message : messages) {
    const auto& content = message.at("content");
    list.push_back({message.at("role").get<std::string>(), content.is_string() ? content.get<std::string>() : ""});
  }
  return list;
}

}  // namespace

JobPrompt PromptMaker::of_text(const std::string& text) const {
  JobPrompt prompt{
      .ids = tokenizer().encode(text), .text = text, .answer = text.empty() ? Place::kStart : Place::kMiddle};
  const std::vector<std::int32_t> start = tokenizer().start_ids();
  if (!std::ranges::equal(start, std::span(prompt.ids).first(std::min(start.size(), prompt.ids.size())))) {
    prompt.ids.insert(prompt.ids.begin(), start.begin(), start.end());
  }
  if (prompt.ids.empty()) prompt.ids.push_back(texts_.ends.start.value_or(tokenizer().prefix_id()));
  return prompt;
}

JobPrompt PromptMaker::of_input(const PromptInput& input) const {
  if (const auto* text = std::get_if<std::string>(&input)) return of_text(*text);
  const auto& ids = std::get<std::vector<std::int32_t>>(input);
  TextStream stream(tokenizer(), {.place = Place::kStart});
  std::string text;
  for (const std::int32_t id : ids) text += stream.push(id).text;
  return {.ids = ids, .text = text + stream.finish().text};
}

JobPrompt PromptMaker::of_chat(const ChatRequest& request) const {
  if (!texts_.chat) throw ApiError(400, "this model takes no conversations: " + texts_.no_chat, "messages");
  if (!request.tools.is_null()) reject_field("tools", "are not in this model's chat template; right is none");
  std::string text;
  try {
    text = texts_.chat->prompt(messages_of(request.messages));
  } catch (const InputError& error) {
    throw ApiError(400, error.what(), "messages");
  }
  return {.ids = tokenizer().encode(text), .text = std::move(text), .answer = Place::kStart};
}

std::vector<std::int32_t> PromptMaker::ends(Endpoint endpoint, const CommonRequest& request, std::int64_t vocab) const {
  std::vector<std::int32_t> ends = request.stop_ids;
  for (auto id = static_cast<std::int32_t>(tokenizer().vocab()); id < vocab; ++id) ends.push_back(id);
  if (request.ignore_ends) return ends;
  ends.push_back(tokenizer().separator());
  ends.insert(ends.end(), texts_.ends.ends.begin(), texts_.ends.ends.end());
  if (endpoint == Endpoint::kChat && texts_.chat) {
    for (const std::int32_t id : tokenizer().encode(texts_.chat->end_of_turn())) ends.push_back(id);
  }
  return ends;
}

}  // namespace kvloom
