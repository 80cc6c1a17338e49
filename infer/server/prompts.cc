#include "infer/server/prompts.h"

#include <algorithm>

#include "infer/server/openai_error.h"

namespace kvloom {

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
  std::string text;
  try {
    text = texts_.chat->prompt(request.conversation);
  } catch (const InputError& error) {
    throw ApiError(400, error.what(), request.conversation.tools.is_null() ? "messages" : "tools");
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
    for (const std::int32_t id : texts_.chat->end_ids(tokenizer())) ends.push_back(id);
  }
  return ends;
}

}  // namespace kvloom
