#include "infer/generation/text_model.h"

#include <algorithm>
#include <utility>

#include "infer/generation_config.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

// Beyond the model's vocabulary there is no embedding.
void check_vocabulary(const std::vector<std::int32_t>& tokens, const Tokenizer& tokenizer, std::int64_t vocab) {
  const auto beyond = std::ranges::find_if(tokens, [&](std::int32_t token) { return token >= vocab; });
  if (beyond == tokens.end()) return;
  reject_input("prompt: has token {} of a tokenizer of {} ids; the model has {} (kvloom convert --pad-vocab adds some)",
               *beyond, tokenizer.vocab(), vocab);
}

}  // namespace

TextModel::TextModel(const proto::Manifest& manifest, const ModelConfig& config, std::string where,
                     const std::string& chat_template)
    : where_(std::move(where)),
      tokenizer_(make_tokenizer(manifest.tokenizer_kind(), manifest.tokenizer(), where_)),
      vocab_(config.vocab),
      start_(tokenizer_->separator()) {
  TextEnds texts = text_ends_of(manifest.huggingface(), config.vocab, where_);
  ends_ = std::move(texts.ends);
  ends_.push_back(tokenizer_->separator());
  start_ = texts.start.value_or(start_);
  // Ids that the tokenizer does not know pad the model's vocabulary: what they would say, nobody knows.
  for (std::int64_t id = tokenizer_->vocab(); id < config.vocab; ++id) ends_.push_back(static_cast<std::int32_t>(id));
  try {
    chat_ = chat_template_of(*tokenizer_, chat_template.empty() ? "auto" : chat_template, where_);
    turn_ends_ = chat_->end_ids(*tokenizer_);
  } catch (const InputError& error) {
    if (!chat_template.empty()) throw;
    no_chat_ = error.what();
  }
}

EncodedPrompt TextModel::prompt_of(std::vector<std::int32_t> tokens, Place answer) const {
  return {.tokens = std::move(tokens), .answer = answer, .ends = ends_};
}

EncodedPrompt TextModel::of_text(std::string_view text) const {
  std::vector<std::int32_t> tokens = tokenizer_->start_ids();
  tokenizer_->encode(text, tokens);
  if (tokens.empty()) tokens.push_back(start_);
  check_vocabulary(tokens, *tokenizer_, vocab_);
  return prompt_of(std::move(tokens), text.empty() ? Place::kStart : Place::kMiddle);
}

EncodedPrompt TextModel::of_tokens(std::vector<std::int32_t> tokens) const {
  const bool says_something = std::ranges::any_of(tokens, [&](std::int32_t id) {
    return id >= 0 && id < tokenizer_->vocab() && !tokenizer_->bytes_of(id).empty();
  });
  return prompt_of(std::move(tokens), says_something ? Place::kMiddle : Place::kStart);
}

EncodedPrompt TextModel::of_messages(const Conversation& conversation) const {
  if (!chat_.has_value()) reject_input("{}", no_chat_);
  EncodedPrompt prompt = prompt_of(tokenizer_->encode(chat_->prompt(conversation)), Place::kStart);
  check_vocabulary(prompt.tokens, *tokenizer_, vocab_);
  prompt.ends.insert(prompt.ends.end(), turn_ends_.begin(), turn_ends_.end());
  return prompt;
}

}  // namespace kvloom
