// What attention's forward and backward share: strides made explicit, which keys a query sees, tiles widened to f32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cpu/vector_math.h"

namespace kvloom::cpu {

inline constexpr std::int64_t kQueryTile = 48;  // a multiple of the row block of multiply_tile
inline constexpr std::int64_t kKeyTile = 128;

struct KeyRange {
  std::int64_t begin;
  std::int64_t end;
};

inline AttentionShape with_strides(AttentionShape shape) {
  if (shape.query_stride == 0) shape.query_stride = shape.heads * shape.head_dim;
  if (shape.output_stride == 0) shape.output_stride = shape.heads * shape.head_dim;
  if (shape.key_stride == 0) shape.key_stride = shape.kv_heads * shape.head_dim;
  if (shape.key_batch_stride == 0) shape.key_batch_stride = shape.keys * shape.key_stride;
  return shape;
}

// The keys that query `n` sees (DESIGN 4); begin == end when none.
inline KeyRange visible(const AttentionShape& shape, std::int64_t n) {
  const std::int64_t position = shape.first_position + n;
  const std::int64_t last = shape.visibility == Visibility::kUpward ? position : position + 1;
  const std::int64_t end = std::min(shape.keys, last);
  const std::int64_t begin = shape.window > 0 ? std::max<std::int64_t>(0, position - shape.window + 1) : 0;
  return {std::min(begin, end), end};
}

// The keys that any of the queries [first, last) sees. Both ends grow with the query.
inline KeyRange visible(const AttentionShape& shape, std::int64_t first, std::int64_t last) {
  return {visible(shape, first).begin, visible(shape, last - 1).end};
}

// target [rows, columns] = source, f32.
template <typename T>
void widen(const T* source, std::int64_t source_stride, std::int64_t rows, std::int64_t columns, float* target,
           std::int64_t target_stride) {
  for (std::int64_t r = 0; r < rows; ++r) {
#pragma omp simd
    for (std::int64_t c = 0; c < columns; ++c) target[r * target_stride + c] = load(source + r * source_stride, c);
  }
}

// target [columns, rows] = source transposed, f32.
template <typename T>
void widen_transposed(const T* source, std::int64_t source_stride, std::int64_t rows, std::int64_t columns,
                      float* target, std::int64_t target_stride) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) target[c * target_stride + r] = load(source + r * source_stride, c);
  }
}

}  // namespace kvloom::cpu
