// From a conversation to the prompt that a chat model was trained on. Debian has no Jinja for C++, so these are built
// in, by name, and a tokenizer's own template is used where it is one of them, to the letter:
//
//   chatml   <|im_start|>ROLE\nTEXT<|im_end|>\n ... <|im_start|>assistant\n          (Qwen and many more)
//
//   llama-3  BOS<|start_header_id|>ROLE<|end_header_id|>\n\nTEXT<|eot_id|> ...
//            <|start_header_id|>assistant<|end_header_id|>\n\n
//
//   llama-2  BOS[INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\nTEXT [/INST] ANSWER EOSBOS[INST] TEXT [/INST]
//
//   mistral  BOS[INST] TEXT [/INST]ANSWEREOS[INST] TEXT [/INST]                     (7B Instruct 0.2)
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "infer/tokenizer.h"

namespace kvloom {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

enum class ChatFormat { kChatMl, kLlama3, kLlama2, kMistral };

// Throws InputError for another name.
ChatFormat chat_format_named(std::string_view name);

class ChatTemplate {
 public:
  // BOS and EOS as the tokenizer writes them; chatml needs neither.
  ChatTemplate(ChatFormat format, std::string begin, std::string end)
      : format_(format), begin_(std::move(begin)), end_(std::move(end)) {}

  // The text up to where the assistant goes on. Special tokens stand in it as text, so that encode finds them; a
  // tokenizer's start_ids do not go before it. Throws InputError when the format cannot say this conversation: roles
  // that do not alternate, or a system message where it has none.
  std::string prompt(std::span<const ChatMessage> messages) const;

  // The special token that ends what the assistant says.
  std::string end_of_turn() const;

 private:
  ChatFormat format_;
  std::string begin_;
  std::string end_;
};

// "auto": the tokenizer's own, from its tokenizer_config.json or chat_template.jinja. Throws InputError, with `where`,
// when it has none, or one that is not built in, or when the format's special tokens are no tokens of the tokenizer.
ChatTemplate chat_template_of(const Tokenizer& tokenizer, std::string_view name, const std::string& where);

}  // namespace kvloom
