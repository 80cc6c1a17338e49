// From a conversation to the prompt that a chat model was trained on: by the template that came with its tokenizer, by
// one in a file, or by one of these, which need neither:
//
//   chatml   <|im_start|>ROLE\nTEXT<|im_end|>\n ... <|im_start|>assistant\n          (Qwen and many more)
//   llama-3  BOS<|start_header_id|>ROLE<|end_header_id|>\n\nTEXT<|eot_id|> ... the assistant's header
//   llama-2  BOS[INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\nTEXT [/INST] ANSWER EOSBOS[INST] TEXT [/INST]
//   mistral  BOS[INST] TEXT [/INST]ANSWEREOS[INST] TEXT [/INST]                     (7B Instruct 0.2)
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "infer/tokenizer.h"

namespace kvloom {

struct ChatMessage {
  std::string role;                    // "system", "user", "assistant", or what the template knows beside
  std::optional<std::string> content;  // none where an assistant only calls tools
  nlohmann::ordered_json more = {};    // an object of other fields (name, tool_calls, tool_call_id, ...), or null
};

// A message as OpenAI's API has it. `content` is a text, null, or a list of parts {"type": "text", "text": ...}, whose
// texts are joined by newlines; the arguments of tool calls, JSON in a text, become JSON. Throws InputError, with
// `place` ("messages[2]"), for another type, for a part that is no text, and for text that is no UTF-8.
ChatMessage chat_message_of(const nlohmann::ordered_json& message, const std::string& place);
// Of a list that is not empty.
std::vector<ChatMessage> chat_messages_of(const nlohmann::ordered_json& messages, const std::string& place);

enum class AnswerHeader { kAdded, kLeftOut };  // whether the prompt ends where the assistant begins

struct Conversation {
  std::vector<ChatMessage> messages;
  nlohmann::ordered_json tools = {};      // a list, or null
  nlohmann::ordered_json documents = {};  // a list, or null
  nlohmann::ordered_json variables = {};  // an object of what else a template may ask for (enable_thinking), or null
  AnswerHeader header = AnswerHeader::kAdded;
};

enum class ChatFormat { kChatMl, kLlama3, kLlama2, kMistral };

// Throws InputError for another name.
ChatFormat chat_format_named(std::string_view name);

std::tm local_time();

class ChatTemplate {
 public:
  // BOS and EOS as the tokenizer writes them; chatml needs neither.
  static ChatTemplate built_in(ChatFormat format, std::string begin, std::string end);
  // A Jinja template and the special tokens by name (bos_token, ...). Where `with_tools` is not empty it takes the
  // template's place for conversations with tools. Throws InputError, with `name`, for what is no template.
  static ChatTemplate jinja(std::string_view source, std::string_view with_tools, const std::string& name,
                            nlohmann::ordered_json special_tokens);

  // The text, up to where the assistant goes on if `header` says so. Special tokens stand in it as text, so that encode
  // finds them; a tokenizer's start_ids do not go before it. Throws InputError when the template cannot say this
  // conversation. `now` is what a template reads as the time.
  std::string prompt(const Conversation& conversation, const std::tm& now = local_time()) const;

  // The ids that end what the assistant says: the control id that this template puts behind an answer. None where it
  // puts none.
  std::vector<std::int32_t> end_ids(const Tokenizer& tokenizer) const;

 private:
  struct Implementation;
  explicit ChatTemplate(std::shared_ptr<const Implementation> implementation)
      : implementation_(std::move(implementation)) {}

  std::shared_ptr<const Implementation> implementation_;
};

// "auto": the tokenizer's own, from its chat_template.jinja, tokenizer_config.json or chat_template.json; of several
// named ones "default", and "tool_use" for conversations with tools. Otherwise a built-in format, one of the
// tokenizer's templates by its name, or a file. Throws InputError, with `where`, when there is none such, when it is no
// template, or when a built-in format's special tokens are no tokens of the tokenizer.
ChatTemplate chat_template_of(const Tokenizer& tokenizer, const std::string& name, const std::string& where);

}  // namespace kvloom
