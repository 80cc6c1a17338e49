// Reads fields of a JSON object, each with its type and range, and says in ApiError which is wrong.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "infer/server/openai_error.h"

namespace kvloom {

class Fields {
 public:
  explicit Fields(const nlohmann::ordered_json& object) : object_(object) {}

  // Null, too, where the field is not there.
  const nlohmann::ordered_json& at(const std::string& name) const {
    static const nlohmann::ordered_json nothing;
    const auto found = object_.find(name);
    return found == object_.end() ? nothing : *found;
  }

  std::optional<bool> flag(const std::string& name) const;
  std::optional<std::string> text(const std::string& name) const;
  std::optional<std::int64_t> integer(const std::string& name, std::int64_t least, std::int64_t most) const;
  std::optional<double> number(const std::string& name) const;

 private:
  const nlohmann::ordered_json& object_;
};

template <typename... Args>
[[noreturn]] void reject_field(const std::string& field, fmt::format_string<Args...> format, Args&&... args) {
  throw ApiError(400, field + ": " + fmt::format(format, std::forward<Args>(args)...), field);
}

}  // namespace kvloom
