#include "core/convert/json_fields.h"

#include <cmath>
#include <limits>
#include <utility>

#include "core/git_lfs.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kDeepest = 32;

}  // namespace

JsonFields::JsonFields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

const Json* JsonFields::find(const std::string& name) {
  touched_.insert(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void JsonFields::reject(const std::string& name, std::string_view right) const {
  reject_input("{}: {} is {}; right is {}", where_, name,
               object_[name].dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 64), right);
}

std::optional<std::uint32_t> JsonFields::integer(const std::string& name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_unsigned() || value->get<std::uint64_t>() > std::numeric_limits<std::uint32_t>::max()) {
    reject(name, "a whole number");
  }
  return value->get<std::uint32_t>();
}

std::optional<std::vector<std::int64_t>> JsonFields::integers(const std::string& name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  const Json items = value->is_array() ? *value : Json::array({*value});
  std::vector<std::int64_t> numbers;
  for (const Json& item : items) {
    if (!item.is_number_integer()) reject(name, "a whole number or a list of them");
    numbers.push_back(item.get<std::int64_t>());
  }
  return numbers;
}

std::uint32_t JsonFields::required_integer(const std::string& name) {
  const auto value = integer(name);
  if (!value) reject_input("{} has no {}", where_, name);
  return *value;
}

std::optional<double> JsonFields::number(const std::string& name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || !std::isfinite(value->get<double>())) reject(name, "a number");
  return value->get<double>();
}

bool JsonFields::boolean(const std::string& name, bool absent) {
  const Json* value = find(name);
  if (value == nullptr) return absent;
  if (!value->is_boolean()) reject(name, "true or false");
  return value->get<bool>();
}

std::optional<std::string> JsonFields::text(const std::string& name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) reject(name, "a string");
  return value->get<std::string>();
}

std::optional<std::vector<std::string>> JsonFields::texts(const std::string& name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  std::vector<std::string> items;
  if (!value->is_array()) reject(name, "a list of strings");
  for (const Json& item : *value) {
    if (!item.is_string()) reject(name, "a list of strings");
    items.push_back(item.get<std::string>());
  }
  return items;
}

const Json* JsonFields::object(const std::string& name) {
  const Json* value = find(name);
  if (value != nullptr && !value->is_object()) reject(name, "an object");
  return value;
}

bool JsonFields::has(const std::string& name) { return find(name) != nullptr; }

bool JsonFields::is_object(const std::string& name) {
  const Json* value = find(name);
  return value != nullptr && value->is_object();
}

std::vector<std::string> JsonFields::untouched() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : object_.items()) {
    if (!touched_.contains(name)) names.push_back(name);
  }
  return names;
}

Json parse_json_object(const std::string& text, const std::string& where) {
  refuse_git_lfs(text, where);
  const auto shallow = [&](int depth, Json::parse_event_t event, Json&) {
    const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= kDeepest) reject_input("{} is nested too deep", where);
    return true;
  };
  try {
    Json parsed = Json::parse(text, shallow);
    if (!parsed.is_object()) reject_input("{} is no JSON object", where);
    return parsed;
  } catch (const Json::exception& error) {
    reject_input("{} is no JSON: {}", where, error.what());
  }
}

}  // namespace kvloom
