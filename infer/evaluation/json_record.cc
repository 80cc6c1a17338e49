#include "infer/evaluation/json_record.h"

#include "kernels/error.h"

namespace kvloom {

using Json = nlohmann::ordered_json;

Json parse_json_object(std::string_view text, const std::string& place) {
  Json object = Json::parse(text, nullptr, false);
  if (!object.is_object()) reject_input("{}: is no JSON object: {}", place, text.substr(0, 60));
  return object;
}

const Json& JsonRecord::at(const char* field) const {
  if (!has(field)) reject_input("{}: has no field '{}'", place_, field);
  return object_.at(field);
}

std::string JsonRecord::as_text(const Json& value, const char* field) const {
  if (!value.is_string()) reject(field, fmt::format("holds {}; right is a text", value.type_name()));
  return value.get<std::string>();
}

std::string JsonRecord::text(const char* field) const { return as_text(at(field), field); }

std::vector<std::string> JsonRecord::texts(const char* field) const {
  const Json& list = at(field);
  if (!list.is_array() || list.empty()) reject(field, "is no list of texts");
  std::vector<std::string> result;
  for (const Json& value : list) result.push_back(as_text(value, field));
  return result;
}

JsonRecord JsonRecord::object(const char* field) const {
  if (!at(field).is_object()) reject(field, "is no object");
  return {at(field), fmt::format("{}: {}", place_, field)};
}

std::vector<int> JsonRecord::indices(const char* field, std::size_t count) const {
  const Json& value = at(field);
  const Json list = value.is_array() ? value : Json::array({value});
  std::vector<int> result;
  for (const Json& index : list) {
    if (!index.is_number_unsigned() || index.get<std::uint64_t>() >= count) {
      reject(field, fmt::format("is {}; right are 0 to {}", index.dump(), count - 1));
    }
    result.push_back(index.get<int>());
  }
  if (result.empty()) reject(field, "names no choice");
  return result;
}

std::int64_t JsonRecord::count_or(const char* field, std::int64_t otherwise) const {
  if (!has(field)) return otherwise;
  const Json& value = at(field);
  if (!value.is_number_unsigned() || value.get<std::int64_t>() < 1) {
    reject(field, fmt::format("is {}; right is 1 or more", value.dump()));
  }
  return value.get<std::int64_t>();
}

void JsonRecord::reject(const char* field, const std::string& why) const {
  reject_input("{}: '{}' {}", place_, field, why);
}

}  // namespace kvloom
