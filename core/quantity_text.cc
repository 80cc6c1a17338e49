#include "core/quantity_text.h"

#include <fmt/format.h>

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <span>
#include <system_error>
#include <utility>

#include "kernels/error.h"

namespace kvloom {
namespace {

std::string scaled(double value, double step, std::span<const char* const> units) {
  std::size_t unit = 0;
  while (value >= step && unit + 1 < units.size()) {
    value /= step;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f}{}", value, units[unit]) : fmt::format("{:.1f}{}", value, units[unit]);
}

double bytes_of_unit(std::string unit) {
  static constexpr std::array<std::pair<const char*, double>, 14> kUnits = {{{"", 1},
                                                                             {"b", 1},
                                                                             {"k", 0x1p10},
                                                                             {"kib", 0x1p10},
                                                                             {"kb", 1e3},
                                                                             {"m", 0x1p20},
                                                                             {"mib", 0x1p20},
                                                                             {"mb", 1e6},
                                                                             {"g", 0x1p30},
                                                                             {"gib", 0x1p30},
                                                                             {"gb", 1e9},
                                                                             {"t", 0x1p40},
                                                                             {"tib", 0x1p40},
                                                                             {"tb", 1e12}}};
  for (char& c : unit) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const auto& [name, bytes] : kUnits) {
    if (unit == name) return bytes;
  }
  return 0;
}

}  // namespace

std::string format_bytes(double bytes) {
  static constexpr std::array kUnits = {" B", " KiB", " MiB", " GiB", " TiB"};
  return scaled(bytes, 1024, kUnits);
}

std::string format_count(double count) {
  static constexpr std::array kUnits = {"", "K", "M", "G", "T"};
  return scaled(count, 1000, kUnits);
}

std::string format_seconds(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  if (whole >= 3600) return fmt::format("{}h{:02}m", whole / 3600, whole % 3600 / 60);
  if (whole >= 60) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}s", whole);
}

std::int64_t parse_bytes(const std::string& text, const std::string& option) {
  const std::size_t digits = text.find_first_not_of("0123456789.");
  const std::size_t unit = text.find_first_not_of(' ', digits);
  const double scale = bytes_of_unit(unit == std::string::npos ? "" : text.substr(unit));
  const std::string number = text.substr(0, digits);
  double count = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), count);
  const bool is_number = error == std::errc() && end == number.data() + number.size();
  const double bytes = std::floor(count * scale);
  if (!is_number || scale == 0 || !(bytes >= 0 && bytes < 0x1p62)) {
    reject_input("{}: '{}'; right is a number of bytes such as 4GiB, 512MiB or 0", option, text);
  }
  return static_cast<std::int64_t>(bytes);
}

}  // namespace kvloom
