#include "infer/server/openai_fields.h"

namespace kvloom {

std::optional<bool> Fields::flag(const std::string& name) const {
  const auto& value = at(name);
  if (value.is_null()) return std::nullopt;
  if (!value.is_boolean()) reject_field(name, "is a {}; right is true or false", value.type_name());
  return value.get<bool>();
}

std::optional<std::string> Fields::text(const std::string& name) const {
  const auto& value = at(name);
  if (value.is_null()) return std::nullopt;
  if (!value.is_string()) reject_field(name, "is a {}; right is a text", value.type_name());
  return value.get<std::string>();
}

std::optional<std::int64_t> Fields::integer(const std::string& name, std::int64_t least, std::int64_t most) const {
  const auto& value = at(name);
  if (value.is_null()) return std::nullopt;
  if (value.is_number_float()) {
    const auto number = value.get<double>();  // some clients write 16.0
    if (number != static_cast<double>(static_cast<std::int64_t>(number < 9e15 && number > -9e15 ? number : 0))) {
      reject_field(name, "is {}; right is a whole number from {} to {}", number, least, most);
    }
  } else if (!value.is_number_integer()) {
    reject_field(name, "is a {}; right is a whole number", value.type_name());
  }
  const bool too_large = value.is_number_unsigned() &&
                         value.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()};
  const auto number = value.get<std::int64_t>();
  if (too_large || number < least || number > most) {
    reject_field(name, "is {}; right is a whole number from {} to {}", value.dump(), least, most);
  }
  return number;
}

std::optional<double> Fields::number(const std::string& name) const {
  const auto& value = at(name);
  if (value.is_null()) return std::nullopt;
  if (!value.is_number()) reject_field(name, "is a {}; right is a number", value.type_name());
  return value.get<double>();
}

}  // namespace kvloom
