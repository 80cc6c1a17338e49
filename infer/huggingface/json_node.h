// A value of a tokenizer.json that knows where it stands, so that what is wrong with it can be named.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/error.h"

namespace kvloom::huggingface {

class JsonNode {
 public:
  // `place` starts every message, as "'tokenizer.json': model".
  JsonNode(const nlohmann::json& value, std::string place) : value_(&value), place_(std::move(place)) {}

  const std::string& place() const { return place_; }
  const nlohmann::json& value() const { return *value_; }

  // The member, which must be there; with `has`, whether it is, and not null.
  JsonNode at(std::string_view name) const;
  bool has(std::string_view name) const;
  std::vector<JsonNode> items() const;  // of an array

  const std::string& text() const;
  bool truth() const;
  std::int64_t integer(std::int64_t low, std::int64_t high) const;
  char32_t character() const;  // a text of one character
  std::string type() const { return at("type").text(); }
  // For messages: the value, or what kind of one it is where it holds others.
  std::string shown() const;

  // The member, or what stands for one that is not there.
  std::string text_or(std::string_view name, std::string otherwise) const;
  bool truth_or(std::string_view name, bool otherwise) const;

  template <typename... Args>
  [[noreturn]] void reject(fmt::format_string<Args...> format, Args&&... args) const {
    reject_input("{}: {}", place_, fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  const nlohmann::json& object() const;

  const nlohmann::json* value_;
  std::string place_;
};

}  // namespace kvloom::huggingface
