// Values of one type as another.
#include <cmath>
#include <limits>
#include "tests/support/ptx/actions.h"

#include "kernels/dtype.h"

namespace kvloom::ptx {
namespace {

constexpr auto kSaturate = [](float a) { return a > 0 ? std::fmin(a, 1.0f) : 0.0f; };

std::uint16_t bf16_of(float value) { return BFloat16(value).bits; }
constexpr auto kToBf16 = [](float a) { return bf16_of(a); };
constexpr auto kToBf16Pair = [](float high, float low) { return std::uint32_t{bf16_of(high)} << 16 | bf16_of(low); };
constexpr auto kFromBf16 = [](std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); };
constexpr auto kToHalf = [](float a) { return std::bit_cast<std::uint16_t>(static_cast<_Float16>(a)); };
constexpr auto kFromHalf = [](std::uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); };

enum class Rounding { kNone, kNearest, kDown, kUp, kToZero };

template <typename To, typename From, Rounding kRounding>
To converted(From value) {
  if constexpr (std::floating_point<From>) {
    From rounded = value;
    if constexpr (kRounding == Rounding::kNearest && (std::integral<To> || sizeof(To) >= sizeof(From))) {
      rounded = std::nearbyint(value);
    }
    if constexpr (kRounding == Rounding::kDown) rounded = std::floor(value);
    if constexpr (kRounding == Rounding::kUp) rounded = std::ceil(value);
    if constexpr (kRounding == Rounding::kToZero) rounded = std::trunc(value);
    if constexpr (std::integral<To>) {
      if (rounded != rounded) return To{};
      if (rounded <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
      if (rounded >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
    }
    return static_cast<To>(rounded);
  } else {
    return static_cast<To>(value);
  }
}

template <typename To, typename From>
Action conversion_between(const Words& words) {
  constexpr auto kPlain = [](From a) { return converted<To, From, Rounding::kNone>(a); };
  constexpr auto kNearest = [](From a) { return converted<To, From, Rounding::kNearest>(a); };
  constexpr auto kDown = [](From a) { return converted<To, From, Rounding::kDown>(a); };
  constexpr auto kUp = [](From a) { return converted<To, From, Rounding::kUp>(a); };
  constexpr auto kToZero = [](From a) { return converted<To, From, Rounding::kToZero>(a); };
  if (has(words, "rni")) return &lanewise<kNearest, To, From>;
  if (has(words, "rmi")) return &lanewise<kDown, To, From>;
  if (has(words, "rpi")) return &lanewise<kUp, To, From>;
  if (has(words, "rzi")) return &lanewise<kToZero, To, From>;
  // What C++ rounds, too: to the nearest.
  return &lanewise<kPlain, To, From>;
}

Action with_byte_too(const std::string& type, auto&& body) {
  if (type == "u8" || type == "b8") return body(Of<std::uint8_t>{});
  if (type == "s8") return body(Of<std::int8_t>{});
  return with_number(type, body);
}

}  // namespace

Action conversion_of(const Words& words) {
  const std::string& to = words[words.size() - 2];
  const std::string& from = words.back();
  if (has(words, "ftz")) return nullptr;
  if (has(words, "sat")) return to == "f32" && from == "f32" ? &lanewise<kSaturate, float, float> : nullptr;
  if (to == "bf16x2") return &lanewise<kToBf16Pair, std::uint32_t, float, float>;
  if (to == "bf16") return &lanewise<kToBf16, std::uint16_t, float>;
  if (from == "bf16") return &lanewise<kFromBf16, float, std::uint16_t>;
  if (to == "f16") return &lanewise<kToHalf, std::uint16_t, float>;
  if (from == "f16") return &lanewise<kFromHalf, float, std::uint16_t>;
  return with_byte_too(to, [&](auto of_to) {
    return with_byte_too(from, [&](auto of_from) {
      return conversion_between<typename decltype(of_to)::Type, typename decltype(of_from)::Type>(words);
    });
  });
}

}  // namespace kvloom::ptx
