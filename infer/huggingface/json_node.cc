#include "infer/huggingface/json_node.h"

#include "infer/unicode.h"

namespace kvloom::huggingface {

const nlohmann::json& JsonNode::object() const {
  if (!value_->is_object()) reject("is no object");
  return *value_;
}

JsonNode JsonNode::at(std::string_view name) const {
  const auto found = object().find(name);
  if (found == value_->end()) reject("has no '{}'", name);
  return {*found, fmt::format("{}.{}", place_, name)};
}

bool JsonNode::has(std::string_view name) const {
  const auto found = object().find(name);
  return found != value_->end() && !found->is_null();
}

std::vector<JsonNode> JsonNode::items() const {
  if (!value_->is_array()) reject("is no array");
  std::vector<JsonNode> nodes;
  for (std::size_t i = 0; i < value_->size(); ++i) nodes.emplace_back((*value_)[i], fmt::format("{}[{}]", place_, i));
  return nodes;
}

const std::string& JsonNode::text() const {
  if (!value_->is_string()) reject("is no string");
  return value_->get_ref<const std::string&>();
}

bool JsonNode::truth() const {
  if (!value_->is_boolean()) reject("is neither true nor false");
  return value_->get<bool>();
}

std::int64_t JsonNode::integer(std::int64_t low, std::int64_t high) const {
  const bool fits = value_->is_number_integer() && *value_ >= low && *value_ <= high;
  if (!fits) reject("{}; right is a whole number of {} to {}", shown(), low, high);
  return value_->get<std::int64_t>();
}

// Not of others: they may be nested without end.
std::string JsonNode::shown() const {
  return value_->is_structured() ? fmt::format("an {}", value_->type_name()) : value_->dump().substr(0, 40);
}

char32_t JsonNode::character() const {
  if (text().empty()) reject("is empty; right is one character");
  const Character character = first_character(text());
  if (character.bytes != text().size()) reject("'{}'; right is one character", text().substr(0, 40));
  return character.code;
}

std::string JsonNode::text_or(std::string_view name, std::string otherwise) const {
  return has(name) ? at(name).text() : std::move(otherwise);
}

bool JsonNode::truth_or(std::string_view name, bool otherwise) const {
  return has(name) ? at(name).truth() : otherwise;
}

}  // namespace kvloom::huggingface
