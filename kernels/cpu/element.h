// Elements of f32 or bf16 one at a time, without branches, and the choice between the two.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/dtype.h"

namespace kvloom::cpu {

inline float load(const float* data, std::int64_t i) { return data[i]; }
inline float load(const BFloat16* data, std::int64_t i) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(data[i].bits) << 16);
}
inline void store(float* data, std::int64_t i, float value) { data[i] = value; }
inline void store(BFloat16* data, std::int64_t i, float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  const std::uint32_t nan = (word >> 16) | 0x40u;
  data[i].bits = static_cast<std::uint16_t>((word & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

// Calls function(T*) with a null pointer of the element type of `dtype`, f32 or bf16.
template <typename Function>
void with_element_type(DType dtype, const char* operation, Function&& function) {
  switch (dtype) {
    case DType::kF32:
      return function(static_cast<float*>(nullptr));
    case DType::kBF16:
      return function(static_cast<BFloat16*>(nullptr));
    default:
      fail("{}: computes on f32 or bf16, not {}", operation, name_of(dtype));
  }
}

}  // namespace kvloom::cpu
