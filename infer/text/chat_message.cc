// Messages as OpenAI's API has them.
#include "infer/text/chat_template.h"
#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

std::string text_of(const Json& value, const std::string& place) {
  if (!value.is_string()) reject_input("{}: is no text", place);
  if (!is_well_formed(value.get_ref<const std::string&>())) reject_input("{}: is no UTF-8", place);
  return value.get<std::string>();
}

std::string joined_parts(const Json& parts, const std::string& place) {
  std::string all;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string here = fmt::format("{}[{}]", place, i);
    const Json& part = parts[i];
    if (!part.is_object() || !part.contains("type")) reject_input("{}: right is an object with a 'type'", here);
    const std::string type = text_of(part["type"], here + ".type");
    if (type != "text" || !part.contains("text")) {
      reject_input("{}: a part of type '{}'; right are parts of type text with a 'text'", here, type.substr(0, 40));
    }
    if (i > 0) all += '\n';
    all += text_of(part["text"], here + ".text");
  }
  return all;
}

// Templates write the arguments as JSON: where they are JSON in a text already, they would be quoted twice.
void parse_arguments(Json& calls) {
  if (!calls.is_array()) return;
  for (Json& call : calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
    Json& function = call["function"];
    if (!function.contains("arguments") || !function["arguments"].is_string()) continue;
    Json parsed = Json::parse(function["arguments"].get_ref<const std::string&>(), nullptr, false);
    if (parsed.is_object()) function["arguments"] = std::move(parsed);
  }
}

}  // namespace

ChatMessage chat_message_of(const Json& message, const std::string& place) {
  if (!message.is_object()) reject_input("{}: is no object; right is {{\"role\": ..., \"content\": ...}}", place);
  if (!message.contains("role")) reject_input("{}: has no 'role'", place);
  ChatMessage read{.role = text_of(message["role"], place + ".role"), .content = {}, .more = Json::object()};
  for (const auto& [name, value] : message.items()) {
    if (name == "role") continue;
    if (name != "content") {
      read.more[name] = value;
    } else if (value.is_array()) {
      read.content = joined_parts(value, place + ".content");
    } else if (!value.is_null()) {
      read.content = text_of(value, place + ".content");
    }
  }
  if (read.more.contains("tool_calls")) parse_arguments(read.more["tool_calls"]);
  if (!read.content.has_value() && !read.more.contains("tool_calls")) {
    reject_input("{}: has no 'content'; right is a text, or a list of parts with texts", place);
  }
  return read;
}

std::vector<ChatMessage> chat_messages_of(const Json& messages, const std::string& place) {
  if (!messages.is_array() || messages.empty()) reject_input("{}: right is a list of one message or more", place);
  std::vector<ChatMessage> all;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    all.push_back(chat_message_of(messages[i], fmt::format("{}[{}]", place, i)));
  }
  return all;
}

}  // namespace kvloom
