// Where an element of a packed matrix lies. Outputs come in panels of 16, one after another; a panel holds its inputs
// in the order in which products take them, as dwords of one output each, 16 outputs side by side:
//   f32   [inputs][16]
//   bf16  [inputs / 2][16][2]         pairs: an operand of AMX's and AVX-512's products of bf16
//   int8  [inputs / 4][16][0, 2, 1, 3]  so that even and odd bytes widen to two such pairs without crossing a dword
// bf16 and int8 have inputs filled up with zeros to a multiple of 32, a row of AMX's tiles. int8's scales follow the
// panels, f32, one an output.
#pragma once

#include "kernels/packed_linear.h"

namespace kvloom::cpu {

constexpr std::int64_t kPanel = 16;          // outputs
constexpr std::int64_t kInputMultiple = 32;  // inputs, but of f32

constexpr std::int64_t round_up(std::int64_t value, std::int64_t to) { return (value + to - 1) / to * to; }

// Inputs with what fills them up.
constexpr std::int64_t inner_of(const PackedShape& shape) {
  return shape.format == WeightFormat::kF32 ? shape.inputs : round_up(shape.inputs, kInputMultiple);
}

constexpr std::int64_t panels_of(const PackedShape& shape) { return (shape.outputs + kPanel - 1) / kPanel; }

constexpr std::int64_t panel_bytes(const PackedShape& shape) {
  return inner_of(shape) * kPanel * bytes_of(shape.format);
}

inline const char* panel_at(const PackedShape& shape, const void* packed, std::int64_t panel) {
  return static_cast<const char*>(packed) + panel * panel_bytes(shape);
}
inline char* panel_at(const PackedShape& shape, void* packed, std::int64_t panel) {
  return static_cast<char*>(packed) + panel * panel_bytes(shape);
}

// [panels * 16], with kInt8 only.
inline const float* scales_of(const PackedShape& shape, const void* packed) {
  return reinterpret_cast<const float*>(panel_at(shape, packed, panels_of(shape)));
}
inline float* scales_of(const PackedShape& shape, void* packed) {
  return reinterpret_cast<float*>(panel_at(shape, packed, panels_of(shape)));
}

// Where input k stands in its dword of int8.
constexpr std::int64_t byte_of_input(std::int64_t k) { return (k % 2) * 2 + k % 4 / 2; }

}  // namespace kvloom::cpu
