// A JSON object of somebody's file, read field by field: what is wrong is said with its place and the field.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace kvloom {

// One JSON object. Throws InputError at `place` when the text is none.
nlohmann::ordered_json parse_json_object(std::string_view text, const std::string& place);

// The object outlives it. Every function that reads throws InputError when the field is missing or is something else.
class JsonRecord {
 public:
  JsonRecord(const nlohmann::ordered_json& object, std::string place) : object_(object), place_(std::move(place)) {}

  const std::string& place() const { return place_; }
  bool has(const char* field) const { return object_.contains(field); }
  const nlohmann::ordered_json& at(const char* field) const;

  std::string text(const char* field) const;
  std::vector<std::string> texts(const char* field) const;  // of a list that is not empty
  JsonRecord object(const char* field) const;
  // One index or a list of them, each of 0 to count - 1.
  std::vector<int> indices(const char* field, std::size_t count) const;
  std::int64_t count_or(const char* field, std::int64_t otherwise) const;  // 1 or more

  // "<place>: '<field>' <why>"
  [[noreturn]] void reject(const char* field, const std::string& why) const;

 private:
  std::string as_text(const nlohmann::ordered_json& value, const char* field) const;

  const nlohmann::ordered_json& object_;
  std::string place_;
};

}  // namespace kvloom
