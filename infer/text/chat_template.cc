#include "infer/text/chat_template.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <variant>

#include "core/file.h"
#include "infer/huggingface/json_node.h"
#include "infer/text/chat_formats.h"
#include "infer/text/jinja.h"
#include "infer/text/python_text.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using huggingface::JsonNode;
using Json = nlohmann::ordered_json;

constexpr std::string_view kNames = "chatml, llama-3, llama-2 and mistral";
constexpr std::uint64_t kLargestTemplate = std::uint64_t{1} << 20;
constexpr std::array kSpecialTokens = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};

struct BuiltIn {
  ChatFormat format;
  std::string begin;
  std::string end;
};

struct OfJinja {
  jinja::Template plain;
  std::optional<jinja::Template> with_tools;
  Json special_tokens;
};

std::string end_of_turn(const BuiltIn& chat) {
  if (chat.format == ChatFormat::kChatMl) return "<|im_end|>";
  return chat.format == ChatFormat::kLlama3 ? "<|eot_id|>" : chat.end;
}

Json variables_of(const OfJinja& chat, const Conversation& conversation) {
  Json variables = chat.special_tokens;
  Json& messages = variables["messages"] = Json::array();
  for (const ChatMessage& message : conversation.messages) {
    Json turn = {{"role", message.role}, {"content", message.content ? Json(*message.content) : Json()}};
    for (const auto& [name, value] : message.more.items()) turn[name] = value;
    messages.push_back(std::move(turn));
  }
  variables["tools"] = conversation.tools.empty() ? Json() : conversation.tools;
  variables["documents"] = conversation.documents.empty() ? Json() : conversation.documents;
  variables["add_generation_prompt"] = conversation.header == AnswerHeader::kAdded;
  for (const auto& [name, value] : conversation.variables.items()) variables[name] = value;
  return variables;
}

// What a tokenizer's files say about conversations.
struct Configuration {
  Json special_tokens = Json::object();
  std::map<std::string, std::string> templates;  // "default" and others
};

std::string token_text(const JsonNode& token) {
  return token.value().is_object() ? token.at("content").text() : token.text();
}

void read_templates(const JsonNode& config, Configuration& read) {
  if (!config.has("chat_template")) return;
  const JsonNode chat = config.at("chat_template");
  if (!chat.value().is_array()) {
    read.templates["default"] = chat.text();
    return;
  }
  for (const JsonNode& entry : chat.items()) read.templates[entry.at("name").text()] = entry.at("template").text();
}

const std::string* file_named(const std::vector<NamedFile>& files, std::string_view name) {
  const auto found = std::ranges::find(files, name, &NamedFile::name);
  return found == files.end() ? nullptr : &found->content;
}

// The later file has the last word.
Configuration configuration_of(const Tokenizer& tokenizer, const std::string& where) {
  const std::vector<NamedFile> files = tokenizer.files();
  Configuration read;
  for (const char* name : {"special_tokens_map.json", "chat_template.json", "tokenizer_config.json"}) {
    const std::string* content = file_named(files, name);
    if (content == nullptr) continue;
    const auto json = nlohmann::json::parse(*content, nullptr, false);
    if (json.is_discarded()) reject_input("{}: {}: is no JSON", where, name);
    const JsonNode config(json, fmt::format("{}: {}", where, name));
    for (const char* token : kSpecialTokens) {
      if (config.has(token)) read.special_tokens[token] = token_text(config.at(token));
    }
    read_templates(config, read);
  }
  if (const std::string* content = file_named(files, "chat_template.jinja")) read.templates["default"] = *content;
  return read;
}

ChatTemplate own_template(const Configuration& config, const std::string& name, const std::string& where) {
  const auto tools = config.templates.find("tool_use");
  const bool has_tools = name == "default" && tools != config.templates.end();
  return ChatTemplate::jinja(config.templates.at(name), has_tools ? tools->second : std::string(),
                             fmt::format("{}: the chat template", where), config.special_tokens);
}

ChatTemplate checked_format(const Tokenizer& tokenizer, std::string_view name, const Json& special_tokens,
                            const std::string& where) {
  const ChatFormat format = chat_format_named(name);
  const std::string begin =
      special_tokens.value("bos_token", format == ChatFormat::kLlama3 ? "<|begin_of_text|>" : "<s>");
  const std::string end = special_tokens.value("eos_token", "</s>");
  std::vector<std::string> needed = {end_of_turn({format, begin, end})};
  if (format == ChatFormat::kChatMl) needed.push_back("<|im_start|>");
  if (format == ChatFormat::kLlama3) needed.push_back("<|start_header_id|>");
  if (format != ChatFormat::kChatMl) needed.push_back(begin);
  for (const std::string& token : needed) {
    if (tokenizer.encode(token).size() != 1) {
      reject_input("{}: '{}' is no token of this tokenizer; right is a chat template that it was trained with", where,
                   token);
    }
  }
  return ChatTemplate::built_in(format, begin, end);
}

bool is_built_in(std::string_view name) {
  return name == "chatml" || name == "llama-3" || name == "llama-2" || name == "mistral";
}

}  // namespace

struct ChatTemplate::Implementation {
  std::variant<BuiltIn, OfJinja> chat;
};

std::tm local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return local;
}

ChatTemplate ChatTemplate::built_in(ChatFormat format, std::string begin, std::string end) {
  return ChatTemplate(
      std::make_shared<const Implementation>(Implementation{BuiltIn{format, std::move(begin), std::move(end)}}));
}

ChatTemplate ChatTemplate::jinja(std::string_view source, std::string_view with_tools, const std::string& name,
                                 nlohmann::ordered_json special_tokens) {
  OfJinja chat{jinja::Template(source, name), std::nullopt, std::move(special_tokens)};
  if (!with_tools.empty()) chat.with_tools.emplace(with_tools, name + " for tools");
  return ChatTemplate(std::make_shared<const Implementation>(Implementation{std::move(chat)}));
}

std::string ChatTemplate::prompt(const Conversation& conversation, const std::tm& now) const {
  if (const auto* chat = std::get_if<BuiltIn>(&implementation_->chat)) {
    return format_chat(chat->format, conversation, chat->begin, chat->end);
  }
  const OfJinja& chat = std::get<OfJinja>(implementation_->chat);
  if (conversation.messages.empty()) reject_input("chat: no messages; right is one at least");
  const bool by_tools = chat.with_tools.has_value() && !conversation.tools.empty();
  return (by_tools ? *chat.with_tools : chat.plain).render(variables_of(chat, conversation), now);
}

// A template is asked for a turn of the assistant; the first thing behind its text is what ends it.
std::vector<std::int32_t> ChatTemplate::end_ids(const Tokenizer& tokenizer) const {
  if (const auto* chat = std::get_if<BuiltIn>(&implementation_->chat)) return tokenizer.encode(end_of_turn(*chat));
  const std::string answer = "answer-of-the-assistant";
  std::string text;
  try {
    text = prompt({.messages = {{"user", "a", {}}, {"assistant", answer, {}}}, .header = AnswerHeader::kLeftOut});
  } catch (const InputError&) {
    return {};  // a template that has no such turn
  }
  const std::size_t at = text.rfind(answer);
  if (at == std::string::npos) return {};
  std::vector<std::int32_t> ids;
  tokenizer.encode(left_stripped(std::string_view(text).substr(at + answer.size())), Place::kMiddle, ids);
  if (ids.empty() || !tokenizer.bytes_of(ids.front()).empty()) return {};
  return {ids.front()};
}

ChatTemplate chat_template_of(const Tokenizer& tokenizer, const std::string& name, const std::string& where) {
  const Configuration config = configuration_of(tokenizer, where);
  if (name == "auto") {
    if (config.templates.contains("default")) return own_template(config, "default", where);
    reject_input("{}: the tokenizer has no chat template; right is one by name ({}) or a file", where, kNames);
  }
  if (is_built_in(name)) return checked_format(tokenizer, name, config.special_tokens, where);
  if (config.templates.contains(name)) return own_template(config, name, where);
  if (!std::filesystem::is_regular_file(name)) {
    reject_input("chat template '{}': is no file; right are auto, {}, or a file with a template", name.substr(0, 80),
                 kNames);
  }
  return ChatTemplate::jinja(read_file(name, kLargestTemplate), {}, name, config.special_tokens);
}

}  // namespace kvloom
