// Typed fields of a JSON object that nobody has vouched for.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace kvloom {

// Every getter treats null as absent, throws InputError naming file and field for another type, and remembers that the
// field was looked at.
class JsonFields {
 public:
  JsonFields(const nlohmann::ordered_json& object, std::string where);

  std::optional<std::uint32_t> integer(const std::string& name);
  std::uint32_t integer(const std::string& name, std::uint32_t absent) { return integer(name).value_or(absent); }
  // One whole number, maybe negative, or a list of them.
  std::optional<std::vector<std::int64_t>> integers(const std::string& name);
  std::uint32_t required_integer(const std::string& name);
  std::optional<double> number(const std::string& name);
  double number(const std::string& name, double absent) { return number(name).value_or(absent); }
  bool boolean(const std::string& name, bool absent);
  std::optional<std::string> text(const std::string& name);
  std::optional<std::vector<std::string>> texts(const std::string& name);
  // Null when absent.
  const nlohmann::ordered_json* object(const std::string& name);

  // There, not null, and of whatever type.
  bool has(const std::string& name);
  bool is_object(const std::string& name);
  // Names that no getter was asked for.
  std::vector<std::string> untouched() const;

  const std::string& where() const { return where_; }

 private:
  const nlohmann::ordered_json* find(const std::string& name);
  [[noreturn]] void reject(const std::string& name, std::string_view right) const;

  const nlohmann::ordered_json& object_;
  std::string where_;
  std::set<std::string> touched_;
};

// Throws InputError, naming `where`, unless `text` is one JSON object, not nested without end.
nlohmann::ordered_json parse_json_object(const std::string& text, const std::string& where);

}  // namespace kvloom
