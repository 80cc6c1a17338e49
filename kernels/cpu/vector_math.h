// Scalar functions written without branches, so that the compiler turns the loops around them into vectors.
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

// e^x with a relative error below 3e-7 for x >= -87; 0 below, e^88.7 above 88.7 (Cephes' polynomial).
inline float fast_exp(float x) {
  const float clamped = x < -87.0f ? -87.0f : (x > 88.7f ? 88.7f : x);
  // Adding and taking away 1.5 * 2^23 rounds to an integer in the low bits.
  const float shifted = clamped * 1.44269504f + 12582912.0f;
  const auto power = std::bit_cast<std::int32_t>(shifted) - 0x4b400000;
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float value = (p * r * r + r) + 1.0f;
  // Two steps, since 2^128 is no float.
  const float scaled = value * std::bit_cast<float>(((power >> 1) + 127) << 23) *
                       std::bit_cast<float>((power - (power >> 1) + 127) << 23);
  return x < -87.0f ? 0.0f : scaled;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

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
