// A model as those who speak with it see it: text and conversations become ids, and ids end texts. The command line and
// the server share it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/inference_model.h"
#include "infer/text/chat_template.h"
#include "infer/tokenizer.h"

namespace kvloom {

// A prompt in ids, and how what comes after it is read.
struct EncodedPrompt {
  std::vector<std::int32_t> tokens;
  Place answer = Place::kMiddle;   // of what is generated: it goes on with a text, or starts one
  std::vector<std::int32_t> ends;  // ids that end the answer
};

class TextModel {
 public:
  // Of what load_inference_model gave; nothing of it has to outlive this. `chat_template` is as chat_template_of takes
  // it, or empty: then it is the tokenizer's own, which may be missing until it is asked for. `where` stands in
  // messages. Throws InputError for a tokenizer or ends that cannot be read and for a template that cannot be used.
  TextModel(const proto::Manifest& manifest, const ModelConfig& config, std::string where,
            const std::string& chat_template = {});

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const std::string& where() const { return where_; }

  // What follows is safe to call from several threads. Texts whose ids the model does not have are refused with
  // InputError.

  // A text to go on with, after what the tokenizer puts before every text; an empty one starts a document.
  EncodedPrompt of_text(std::string_view text) const;
  // Ids as they are, whatever the tokenizer puts before a text. Whether the model has them is the engine's to say.
  EncodedPrompt of_tokens(std::vector<std::int32_t> tokens) const;
  // What an assistant answers. Throws InputError where there is no template, or it cannot say this conversation.
  EncodedPrompt of_messages(const Conversation& conversation) const;

 private:
  EncodedPrompt prompt_of(std::vector<std::int32_t> tokens, Place answer) const;

  std::string where_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_;
  std::string no_chat_;                  // why there is none
  std::vector<std::int32_t> turn_ends_;  // ids that end an answer in a conversation
  std::int64_t vocab_;                   // of the model
  std::vector<std::int32_t> ends_;
  std::int32_t start_;  // of a document where the tokenizer puts nothing before it
};

}  // namespace kvloom
