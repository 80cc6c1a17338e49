// From what a request says to the ids that the model goes on with.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "infer/generation_config.h"
#include "infer/server/answer_job.h"
#include "infer/server/openai_request.h"
#include "infer/text/chat_template.h"
#include "infer/tokenizer.h"

namespace kvloom {

// What texts are to a model.
struct ModelTexts {
  const Tokenizer* tokenizer = nullptr;
  std::optional<ChatTemplate> chat;  // nothing: the model takes no conversations
  std::string no_chat;               // and why
  TextEnds ends;
};

class PromptMaker {
 public:
  explicit PromptMaker(ModelTexts texts) : texts_(std::move(texts)) {}

  const Tokenizer& tokenizer() const { return *texts_.tokenizer; }

  // A text begins with the model's start ids, once, and an empty one is the start of a document.
  JobPrompt of_text(const std::string& text) const;
  JobPrompt of_input(const PromptInput& input) const;
  // Throws ApiError 400 where the model takes no conversations, or not this one.
  JobPrompt of_chat(const ChatRequest& request) const;
  // Ids that end a text. Those that the tokenizer does not know end it, too.
  std::vector<std::int32_t> ends(Endpoint endpoint, const CommonRequest& request, std::int64_t vocab) const;

 private:
  ModelTexts texts_;
};

}  // namespace kvloom
