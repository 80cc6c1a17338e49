#include "infer/chat_template.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/checksum.h"
#include "infer/huggingface/json_node.h"
#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using huggingface::JsonNode;

constexpr std::string_view kNames = "chatml, llama-3, llama-2 and mistral";

constexpr std::array<std::pair<std::string_view, ChatFormat>, 4> kFormats = {{{"chatml", ChatFormat::kChatMl},
                                                                              {"llama-3", ChatFormat::kLlama3},
                                                                              {"llama-2", ChatFormat::kLlama2},
                                                                              {"mistral", ChatFormat::kMistral}}};

// Checksums of the templates that the models' makers published and that give what is built in.
constexpr std::array<std::pair<std::uint64_t, ChatFormat>, 5> kPublished = {
    {{0x4c6e807ee5fe9f4a, ChatFormat::kChatMl},
     {0x866fc8fa50da12fe, ChatFormat::kLlama3},
     {0x80e4830e93c6d9f7, ChatFormat::kLlama3},
     {0x24f6d97f87d647f5, ChatFormat::kLlama2},
     {0xa5d004210ebce758, ChatFormat::kMistral}}};

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_white_space(first_character(text).code)) text.remove_prefix(first_character(text).bytes);
  while (!text.empty() && is_white_space(last_character(text).code)) text.remove_suffix(last_character(text).bytes);
  return text;
}

void check_roles(std::span<const ChatMessage> messages) {
  if (messages.empty()) reject_input("chat: no messages; right is one at least");
  for (const ChatMessage& message : messages) {
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      reject_input("chat: role '{}'; right are system, user and assistant", message.role.substr(0, 40));
    }
    if (!is_well_formed(message.content)) reject_input("chat: a message of '{}' is no UTF-8", message.role);
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

std::string chatml(std::span<const ChatMessage> messages) {
  std::string text;
  for (const ChatMessage& message : messages) {
    text += fmt::format("<|im_start|>{}\n{}<|im_end|>\n", message.role, message.content);
  }
  return text + "<|im_start|>assistant\n";
}

std::string llama3(std::span<const ChatMessage> messages, const std::string& begin) {
  std::string text = begin;
  for (const ChatMessage& message : messages) {
    text +=
        fmt::format("<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>", message.role, trimmed(message.content));
  }
  return text + "<|start_header_id|>assistant<|end_header_id|>\n\n";
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
    std::string content = messages[i].content;
    if (i == 0 && system.has_value()) content = fmt::format("<<SYS>>\n{}\n<</SYS>>\n\n{}", *system, content);
    text += messages[i].role == "user" ? fmt::format("{}[INST] {} [/INST]", begin, trimmed(content))
                                       : fmt::format(" {} {}", trimmed(content), end);
  }
  return text;
}

std::string mistral(std::span<const ChatMessage> messages, const std::string& begin, const std::string& end) {
  check_alternating(messages);
  std::string text = begin;
  for (const ChatMessage& message : messages) {
    text += message.role == "user" ? fmt::format("[INST] {} [/INST]", message.content) : message.content + end;
  }
  return text;
}

// What a tokenizer's files say about conversations.
struct Configuration {
  std::string begin;
  std::string end;
  std::optional<std::string> chat;  // its own template
};

std::string token_text(const JsonNode& config, const char* name) {
  if (!config.has(name)) return {};
  const JsonNode token = config.at(name);
  return token.value().is_object() ? token.at("content").text() : token.text();
}

std::optional<std::string> own_template(const JsonNode& config) {
  if (!config.has("chat_template")) return std::nullopt;
  const JsonNode chat = config.at("chat_template");
  if (!chat.value().is_array()) return chat.text();
  for (const JsonNode& entry : chat.items()) {
    if (entry.at("name").text() == "default") return entry.at("template").text();
  }
  return std::nullopt;
}

Configuration configuration_of(const Tokenizer& tokenizer, const std::string& where) {
  Configuration read;
  for (const NamedFile& file : tokenizer.files()) {
    if (file.name == "tokenizer_config.json") {
      const auto json = nlohmann::json::parse(file.content, nullptr, false);
      if (json.is_discarded()) reject_input("{}: {}: is no JSON", where, file.name);
      const JsonNode config(json, fmt::format("{}: {}", where, file.name));
      read.begin = token_text(config, "bos_token");
      read.end = token_text(config, "eos_token");
      if (!read.chat.has_value()) read.chat = own_template(config);
    } else if (file.name == "chat_template.jinja") {
      read.chat = file.content;
    }
  }
  return read;
}

ChatFormat format_of(const std::optional<std::string>& chat, const std::string& where) {
  if (!chat.has_value()) {
    reject_input("{}: the tokenizer has no chat template; right is one by name: {}", where, kNames);
  }
  const std::uint64_t sum = checksum(std::as_bytes(std::span(*chat)));
  const auto known = std::ranges::find(kPublished, sum, [](const auto& entry) { return entry.first; });
  if (known != kPublished.end()) return known->second;
  reject_input("{}: the tokenizer's chat template is none of those built in; right is one by name: {}", where, kNames);
}

}  // namespace

ChatFormat chat_format_named(std::string_view name) {
  const auto known = std::ranges::find(kFormats, name, [](const auto& entry) { return entry.first; });
  if (known == kFormats.end()) reject_input("chat template '{}'; right are {}", name.substr(0, 80), kNames);
  return known->second;
}

std::string ChatTemplate::prompt(std::span<const ChatMessage> messages) const {
  check_roles(messages);
  switch (format_) {
    case ChatFormat::kChatMl:
      return chatml(messages);
    case ChatFormat::kLlama3:
      return llama3(messages, begin_);
    case ChatFormat::kLlama2:
      return llama2(messages, begin_, end_);
    default:
      return mistral(messages, begin_, end_);
  }
}

std::string ChatTemplate::end_of_turn() const {
  if (format_ == ChatFormat::kChatMl) return "<|im_end|>";
  return format_ == ChatFormat::kLlama3 ? "<|eot_id|>" : end_;
}

ChatTemplate chat_template_of(const Tokenizer& tokenizer, std::string_view name, const std::string& where) {
  Configuration config = configuration_of(tokenizer, where);
  const ChatFormat format = name == "auto" ? format_of(config.chat, where) : chat_format_named(name);
  if (config.begin.empty()) config.begin = format == ChatFormat::kLlama3 ? "<|begin_of_text|>" : "<s>";
  if (config.end.empty()) config.end = "</s>";
  const ChatTemplate chat(format, config.begin, config.end);
  std::vector<std::string> needed = {chat.end_of_turn()};
  if (format == ChatFormat::kChatMl) needed.push_back("<|im_start|>");
  if (format == ChatFormat::kLlama3) needed.push_back("<|start_header_id|>");
  if (format != ChatFormat::kChatMl) needed.push_back(config.begin);
  for (const std::string& token : needed) {
    if (tokenizer.encode(token).size() != 1) {
      reject_input("{}: '{}' is no token of this tokenizer; right is a chat template that it was trained with", where,
                   token);
    }
  }
  return chat;
}

}  // namespace kvloom
