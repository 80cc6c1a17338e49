// Parts that actions.cc and memory_actions.cc share: values of lanes as the types that instructions name.
#pragma once

#include <bit>
#include <concepts>
#include <cstring>
#include <string>
#include <type_traits>
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

// Memory and what lanes do together. Null: none of these.
Action memory_action_of(const Words& words, Step& step);

}  // namespace kvloom::ptx
