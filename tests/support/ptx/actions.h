// What the files of actions share: values of lanes as the types that instructions name.
#pragma once

#include <bit>
#include <concepts>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/support/ptx/machine.h"

namespace kvloom::ptx {

using Words = std::vector<std::string>;

template <typename Body>
void for_lanes(std::uint32_t lanes, Body&& body) {
  for (; lanes != 0; lanes &= lanes - 1) body(static_cast<std::size_t>(std::countr_zero(lanes)));
}

template <std::size_t kBytes>
using Bits = std::conditional_t<
    kBytes == 1, std::uint8_t,
    std::conditional_t<kBytes == 2, std::uint16_t, std::conditional_t<kBytes == 4, std::uint32_t, std::uint64_t>>>;

template <typename T>
T value_of(std::uint64_t bits) {
  if constexpr (std::is_same_v<T, bool>) {
    return (bits & 1u) != 0;
  } else {
    return std::bit_cast<T>(static_cast<Bits<sizeof(T)>>(bits));
  }
}
template <typename T>
std::uint64_t bits_of(T value) {
  return std::bit_cast<Bits<sizeof(T)>>(value);
}

// The lower `bits` of a word.
inline std::uint64_t cut(std::uint64_t word, int bits) { return bits >= 64 ? word : word & ((1ull << bits) - 1); }

template <typename T>
struct Of {
  using Type = T;
};

// Calls body(Of<T>{}) with the type that a word names; null where none has the name, or not for such operands.
template <typename Body>
Action with_integer(const std::string& type, Body&& body) {
  if (type == "s16") return body(Of<std::int16_t>{});
  if (type == "u16" || type == "b16") return body(Of<std::uint16_t>{});
  if (type == "s32") return body(Of<std::int32_t>{});
  if (type == "u32" || type == "b32") return body(Of<std::uint32_t>{});
  if (type == "s64") return body(Of<std::int64_t>{});
  if (type == "u64" || type == "b64") return body(Of<std::uint64_t>{});
  return nullptr;
}
template <typename Body>
Action with_float(const std::string& type, Body&& body) {
  if (type == "f32") return body(Of<float>{});
  if (type == "f64") return body(Of<double>{});
  return nullptr;
}
template <typename Body>
Action with_number(const std::string& type, Body&& body) {
  const Action action = with_float(type, body);
  return action != nullptr ? action : with_integer(type, body);
}

inline bool has(const Words& words, const char* word) {
  for (const std::string& each : words) {
    if (each == word) return true;
  }
  return false;
}

// to = kOf(from...), for each lane.
template <auto kOf, typename To, typename... From>
void lanewise(const Step& step, Warp& warp, std::uint32_t lanes) {
  Row& to = warp.row(step.to[0]);
  [&]<std::size_t... kIndex>(std::index_sequence<kIndex...>) {
    const Row* from[] = {&warp.row(step.from[kIndex])...};
    for_lanes(lanes, [&](std::size_t lane) {
      to[lane] = bits_of(static_cast<To>(kOf(value_of<From>((*from[kIndex])[lane])...)));
    });
  }
  (std::index_sequence_for<From...>{});
}

// Arithmetic without overflow that C++ would not define.
template <typename T>
auto wrapping(T value) {
  if constexpr (std::integral<T>) {
    return static_cast<std::uint64_t>(value);
  } else {
    return value;
  }
}

template <auto kOf, std::size_t kOperands, typename T>
Action same_types() {
  return []<std::size_t... kIndex>(std::index_sequence<kIndex...>) {
    return static_cast<Action>(
        &lanewise<kOf, T, std::conditional_t<true, T, Of<std::integral_constant<std::size_t, kIndex>>>...>);
  }
  (std::make_index_sequence<kOperands>{});
}
template <auto kOf, std::size_t kOperands>
Action number_action(const std::string& type) {
  return with_number(type, [](auto of) { return same_types<kOf, kOperands, typename decltype(of)::Type>(); });
}
template <auto kOf, std::size_t kOperands>
Action integer_action(const std::string& type) {
  return with_integer(type, [](auto of) { return same_types<kOf, kOperands, typename decltype(of)::Type>(); });
}
template <auto kOf, std::size_t kOperands>
Action float_action(const std::string& type) {
  return with_float(type, [](auto of) { return same_types<kOf, kOperands, typename decltype(of)::Type>(); });
}

inline constexpr auto kSame = []<typename T>(T a) { return a; };

// Each null where the words name none of its instructions.
Action bit_action_of(const Words& words);
Action comparison_of(const Words& words);  // setp
Action conversion_of(const Words& words);  // cvt
// Memory, and what lanes do together.
Action memory_action_of(const Words& words, Step& step);

}  // namespace kvloom::ptx
