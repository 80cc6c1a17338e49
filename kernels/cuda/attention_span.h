// What sees what, for attention kernels: the same rules as DESIGN 4, as ranges. For .cu files.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda/device.h"

namespace kvloom::cuda {

// Natural logarithms in base 2: exp(x) = 2^(x kLog2E).
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kNothing = -INFINITY;  // the largest of no scores

struct Span {
  std::int64_t begin;
  std::int64_t end;
};

// A span in 32 bits, which is as far as positions go: half the instructions for what is asked of every tile.
struct Range {
  int begin;
  int end;

  __device__ __forceinline__ explicit Range(Span span)
      : begin(static_cast<int>(span.begin)), end(static_cast<int>(span.end)) {}
  __device__ __forceinline__ bool has(int i) const { return i >= begin && i < end; }
  // `i`, or where that is outside, the end of the range beside it.
  __device__ __forceinline__ int nearest(int i) const {
    const int below = i < end ? i : end - 1;
    return below > begin ? below : begin;
  }
  __device__ __forceinline__ bool has_all(int first, int count) const { return first >= begin && first + count <= end; }
};

__device__ __forceinline__ std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
__device__ __forceinline__ std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// The shape as sequence b has it: its queries stand where its start says.
__device__ __forceinline__ AttentionShape shape_of(const AttentionForward& op, std::int64_t b) {
  AttentionShape shape = op.shape;
  if (op.starts != nullptr) shape.first_position += op.starts[b];
  return shape;
}

// Keys that query n sees; empty when end <= begin. A query beyond the last sees none.
__device__ __forceinline__ Span keys_of_query(const AttentionShape& shape, std::int64_t n) {
  if (n >= shape.queries) return {0, 0};
  const std::int64_t position = shape.first_position + n;
  const std::int64_t end = shape.visibility == Visibility::kUpward ? position : position + 1;
  const std::int64_t begin = shape.window > 0 ? position - shape.window + 1 : 0;
  return {larger(0, begin), smaller(shape.keys, end)};
}

// Keys that some query of [first, end) sees: no key outside is to be read.
__device__ __forceinline__ Span keys_of_queries(const AttentionShape& shape, std::int64_t first, std::int64_t end) {
  const Span low = keys_of_query(shape, first);
  const Span high = keys_of_query(shape, smaller(end, shape.queries) - 1);
  return {low.begin, high.end};
}

// Queries that may see some key of [first, end).
__device__ __forceinline__ Span queries_of_keys(const AttentionShape& shape, std::int64_t first, std::int64_t end) {
  const std::int64_t above = shape.visibility == Visibility::kUpward ? 1 : 0;
  const std::int64_t begin = first + above - shape.first_position;
  const std::int64_t last = shape.window > 0 ? end - 1 + shape.window - shape.first_position : shape.queries;
  return {larger(0, begin), smaller(shape.queries, last)};
}

// Where rows stand, with strides written out.
__device__ __forceinline__ std::int64_t query_row(const AttentionShape& shape, std::int64_t b, std::int64_t n) {
  return (b * shape.queries + n) * shape.query_stride;
}
__device__ __forceinline__ std::int64_t output_row(const AttentionShape& shape, std::int64_t b, std::int64_t n) {
  return (b * shape.queries + n) * shape.output_stride;
}
// Of log_sum_exp and delta.
__device__ __forceinline__ std::int64_t statistics_at(const AttentionShape& shape, std::int64_t b, std::int64_t n,
                                                      std::int64_t h) {
  return (b * shape.queries + n) * shape.heads + h;
}

// Heads of queries that read one KV head.
__device__ __forceinline__ int group_of(const AttentionShape& shape) {
  return static_cast<int>(shape.heads) / static_cast<int>(shape.kv_heads);
}

// A block's share of a problem that is cut into heads and tiles of them: the same tile of all heads, then the next. In
// 32 bits, which is as far as grids go: with 64 a division takes a hundred instructions.
struct BlockOfHead {
  int batch;
  int head;
  int tile;
};
__device__ __forceinline__ BlockOfHead block_of_head(std::int64_t heads, std::int64_t tiles) {
  const auto all = static_cast<std::uint32_t>(block_count()) / static_cast<std::uint32_t>(tiles);
  const auto block = static_cast<std::uint32_t>(block_index());
  const std::uint32_t head = block % all;
  const auto of_sequence = static_cast<std::uint32_t>(heads);
  return {static_cast<int>(head / of_sequence), static_cast<int>(head % of_sequence), static_cast<int>(block / all)};
}
// With a causal mask the first keys are seen by the most queries, and the last queries see the most keys. What has the
// most to do comes first.
__device__ __forceinline__ BlockOfHead block_of_keys(const AttentionShape& shape, std::int64_t tiles) {
  return block_of_head(shape.kv_heads, tiles);
}
__device__ __forceinline__ BlockOfHead block_of_queries(const AttentionShape& shape, std::int64_t tiles) {
  BlockOfHead block = block_of_head(shape.heads, tiles);
  block.tile = static_cast<int>(tiles) - 1 - block.tile;
  return block;
}

// The softmax of a row while its scores come in: the largest so far, and the sum of exponentials below it, in units of
// base 2 (scores times kLog2E).
struct RunningSoftmax {
  float largest = kNothing;
  float total = 0;

  // What exponents count from. Where nothing was seen that is no infinity, so that nothing weighs 0.
  __device__ __forceinline__ float base() const { return largest == kNothing ? 0.0f : largest; }
  // Takes in a new largest score; returns what sums formed so far have to be multiplied with.
  __device__ __forceinline__ float raise(float score) {
    const float before = largest;
    largest = fmaxf(largest, score);
    const float factor = exp2_flushed(before - base());
    total *= factor;
    return factor;
  }
  // The exponential of a score that is at most `largest`, or of kNothing.
  __device__ __forceinline__ float weight(float score) const { return exp2_flushed(score - base()); }
  __device__ __forceinline__ float inverse_total() const { return total > 0.0f ? 1.0f / total : 0.0f; }
  // In natural units; -infinity where nothing was seen.
  __device__ __forceinline__ float log_sum_exp() const {
    return total > 0.0f ? largest / kLog2E + logf(total) : kNothing;
  }
};

}  // namespace kvloom::cuda
