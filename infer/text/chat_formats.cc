#include "infer/text/chat_formats.h"

#include <algorithm>
#include <array>
#include <utility>

#include "infer/text/python_text.h"
#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::array<std::pair<std::string_view, ChatFormat>, 4> kFormats = {{{"chatml", ChatFormat::kChatMl},
                                                                              {"llama-3", ChatFormat::kLlama3},
                                                                              {"llama-2", ChatFormat::kLlama2},
                                                                              {"mistral", ChatFormat::kMistral}}};

void check_roles(std::span<const ChatMessage> messages) {
  if (messages.empty()) reject_input("chat: no messages; right is one at least");
  for (const ChatMessage& message : messages) {
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      reject_input("chat: role '{}'; right are system, user and assistant", message.role.substr(0, 40));
    }
    if (!message.content.has_value()) reject_input("chat: a message of '{}' has no text", message.role);
    if (!is_well_formed(*message.content)) reject_input("chat: a message of '{}' is no UTF-8", message.role);
  }
}

void check_alternating(std::span<const ChatMessage> messages) {
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const char* right = i % 2 == 0 ? "user" : "assistant";
    if (messages[i].role != right) {
      reject_input("chat: message {} is of '{}'; in this format user and assistant alternate, and right is '{}'", i,
                   messages[i].role, right);
    }
  }
}

std::string chatml(std::span<const ChatMessage> messages, bool answers) {
  std::string text;
  for (const ChatMessage& message : messages) {
    text += fmt::format("<|im_start|>{}\n{}<|im_end|>\n", message.role, *message.content);
  }
  return text + (answers ? "<|im_start|>assistant\n" : "");
}

std::string llama3(std::span<const ChatMessage> messages, const std::string& begin, bool answers) {
  std::string text = begin;
  for (const ChatMessage& message : messages) {
    text +=
        fmt::format("<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>", message.role, stripped(*message.content));
  }
  return text + (answers ? "<|start_header_id|>assistant<|end_header_id|>\n\n" : "");
}

std::string llama2(std::span<const ChatMessage> messages, const std::string& begin, const std::string& end) {
  std::optional<std::string> system;
  if (messages.front().role == "system") {
    system = messages.front().content;
    messages = messages.subspan(1);
  }
  check_alternating(messages);
  std::string text;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    std::string content = *messages[i].content;
    if (i == 0 && system.has_value()) content = fmt::format("<<SYS>>\n{}\n<</SYS>>\n\n{}", *system, content);
    text += messages[i].role == "user" ? fmt::format("{}[INST] {} [/INST]", begin, stripped(content))
                                       : fmt::format(" {} {}", stripped(content), end);
  }
  return text;
}

std::string mistral(std::span<const ChatMessage> messages, const std::string& begin, const std::string& end) {
  check_alternating(messages);
  std::string text = begin;
  for (const ChatMessage& message : messages) {
    text += message.role == "user" ? fmt::format("[INST] {} [/INST]", *message.content) : *message.content + end;
  }
  return text;
}

}  // namespace

ChatFormat chat_format_named(std::string_view name) {
  const auto known = std::ranges::find(kFormats, name, [](const auto& entry) { return entry.first; });
  if (known == kFormats.end()) {
    reject_input("chat template '{}'; right are chatml, llama-3, llama-2 and mistral", name.substr(0, 80));
  }
  return known->second;
}

std::string format_chat(ChatFormat format, const Conversation& conversation, const std::string& begin,
                        const std::string& end) {
  const bool answers = conversation.header == AnswerHeader::kAdded;
  check_roles(conversation.messages);
  if (!conversation.tools.empty())
    reject_input("chat: the built-in formats have no tools; right is a model's template");
  switch (format) {
    case ChatFormat::kChatMl:
      return chatml(conversation.messages, answers);
    case ChatFormat::kLlama3:
      return llama3(conversation.messages, begin, answers);
    case ChatFormat::kLlama2:
      return llama2(conversation.messages, begin, end);
    default:
      return mistral(conversation.messages, begin, end);
  }
}

}  // namespace kvloom
