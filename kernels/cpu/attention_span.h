// Which keys a query sees, and the shape with its strides filled in.
#pragma once

#include <algorithm>

#include "kernels/attention.h"

namespace kvloom::cpu {

inline constexpr std::int64_t kKeyBlock = 64;
inline constexpr std::int64_t kQueryBlock = 64;

// Keys [begin, end).
struct Span {
  std::int64_t begin;
  std::int64_t end;
};

// The shape as sequence `sequence` has it: its queries stand where its start says.
inline AttentionShape shape_of(const AttentionForward& op, std::int64_t sequence) {
  AttentionShape shape = op.shape;
  if (op.starts != nullptr) shape.first_position += op.starts[sequence];
  return shape;
}

// What the query at index `query` of a sequence sees; begin == end means nothing.
inline Span visible_keys(const AttentionShape& shape, std::int64_t query) {
  const std::int64_t position = shape.first_position + query;
  const std::int64_t end =
      std::clamp<std::int64_t>(shape.visibility == Visibility::kUpward ? position : position + 1, 0, shape.keys);
  const std::int64_t begin = shape.window > 0 ? std::max<std::int64_t>(0, position - shape.window + 1) : 0;
  return {std::min(begin, end), end};
}

// The union over queries [first, last): both ends only grow with the query.
inline Span visible_keys(const AttentionShape& shape, std::int64_t first, std::int64_t last) {
  const std::int64_t end = visible_keys(shape, last - 1).end;
  return {std::min(visible_keys(shape, first).begin, end), end};
}

// A team of threads costs some microseconds to gather, and far more where others compute on the same cores: products of
// scores that no more than pay for it are left to one thread.
inline bool is_worth_threads(std::int64_t products) { return products >= std::int64_t{1} << 17; }

inline std::int64_t products_of_sequence(const AttentionShape& shape) {
  const Span seen = visible_keys(shape, 0, shape.queries);
  return shape.heads * shape.queries * (seen.end - seen.begin) * shape.head_dim;
}
inline bool is_worth_threads(const AttentionShape& shape) {
  return is_worth_threads(shape.batch * products_of_sequence(shape));
}
inline bool is_worth_threads(const AttentionForward& op) {
  if (op.starts == nullptr) return is_worth_threads(op.shape);
  std::int64_t products = 0;
  for (std::int64_t b = 0; b < op.shape.batch; ++b) products += products_of_sequence(shape_of(op, b));
  return is_worth_threads(products);
}

inline AttentionShape with_strides(AttentionShape shape) {
  if (shape.query_stride == 0) shape.query_stride = shape.heads * shape.head_dim;
  if (shape.output_stride == 0) shape.output_stride = shape.heads * shape.head_dim;
  if (shape.key_stride == 0) shape.key_stride = shape.kv_heads * shape.head_dim;
  if (shape.key_batch_stride == 0) shape.key_batch_stride = shape.keys * shape.key_stride;
  return shape;
}

// Scratch rows are padded to whole vectors of the widest kind.
inline std::int64_t padded(std::int64_t count) { return (count + 15) / 16 * 16; }

inline std::int64_t blocks_of(std::int64_t count, std::int64_t block) { return (count + block - 1) / block; }

// Element `offset` of a tensor of f32 or bf16.
inline const void* advance(const void* data, DType dtype, std::int64_t offset) {
  return static_cast<const char*>(data) + offset * static_cast<std::int64_t>(size_of(dtype));
}
inline void* advance(void* data, DType dtype, std::int64_t offset) {
  return static_cast<char*>(data) + offset * static_cast<std::int64_t>(size_of(dtype));
}

}  // namespace kvloom::cpu
