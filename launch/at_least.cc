#include "launch/at_least.h"

#include <fmt/format.h>

namespace kvloom {

CLI::Validator at_least(std::int64_t least) {
  const auto check = [least](const std::string& text) {
    long double number = 0;
    const bool is_right = CLI::detail::lexical_cast(text, number) && number >= static_cast<long double>(least);
    return is_right ? std::string() : fmt::format("{}; right is {} or more", text, least);
  };
  return CLI::Validator(check, fmt::format(">= {}", least));
}

}  // namespace kvloom
