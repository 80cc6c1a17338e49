// Softmax attention over a source's keys and values, in blocks with an online softmax: [queries, keys] is never whole.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/pages.h"

namespace kvloom {

// What a query at position t may see of its source (DESIGN 4).
enum class Visibility : std::uint8_t {
  kDownward,  // positions j <= t
  kUpward,    // positions j < t; the query at position 0 sees nothing and its output is exactly zero
};

// The shapes that forward and backward share. Query n of a sequence stands at position first_position + n; key j at
// position j. Head h reads KV head h / (heads / kv_heads).
//   query, output   [batch, queries, heads, head_dim]    rows (one token's heads) `query_stride`, `output_stride` apart
//   key, value      [batch, keys, kv_heads, head_dim]    rows `key_stride`, sequences `key_batch_stride` apart
//   log_sum_exp     [batch, queries, heads] f32, natural log of the softmax denominator of the scaled scores;
//                   -infinity where a query sees nothing
// Strides are in elements; 0 means dense. Keys at positions beyond the last visible one are not read.
struct AttentionShape {
  std::int64_t batch;
  std::int64_t queries;
  std::int64_t keys;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  std::int64_t first_position = 0;
  Visibility visibility = Visibility::kDownward;
  std::int64_t window = 0;  // W: also j > t - W; 0 means none
  float scale = 0.0f;       // above 0, usually 1 / sqrt(head_dim)
  std::int64_t query_stride = 0;
  std::int64_t output_stride = 0;
  std::int64_t key_stride = 0;  // also of value
  std::int64_t key_batch_stride = 0;
  DType dtype = DType::kF32;  // of query, key, value and output: f32 or bf16; softmax is f32
};

// output =, log_sum_exp = (may be null).
struct AttentionForward {
  AttentionShape shape;
  const void* query;
  const void* key;
  const void* value;
  void* output;
  float* log_sum_exp;
  // [batch], in the memory of the operands' device: query n of sequence b stands at first_position + starts[b] + n, and
  // shape.keys is no less than any sequence sees. Null: zeros. A query at a negative position sees nothing, so that a
  // start of -queries or less leaves a place of the batch empty: nothing of its keys is read.
  const std::int32_t* starts = nullptr;
  // Where it has pages, key and value are pools [rows, kv_heads, head_dim], rows `key_stride` apart, and
  // key_batch_stride means nothing. Only pages and rows that a query sees are read.
  PageTable page_table = {};
};

// grad_query =; grad_key, grad_value += (f32, dense [batch, keys, kv_heads, head_dim]; may both be null: not computed).
// grad_output has output's layout and dtype, grad_query query's (with grad_query_stride between rows; 0 is dense).
// Sums run in an order that depends on shapes only, never on threads.
struct AttentionBackward {
  AttentionShape shape;
  const void* query;
  const void* key;
  const void* value;
  const void* output;
  const float* log_sum_exp;
  const void* grad_output;
  void* grad_query;
  std::int64_t grad_query_stride;
  float* grad_key;
  float* grad_value;
};

namespace cpu {
void run(const AttentionForward& op);
void run(const AttentionBackward& op);
}  // namespace cpu

namespace cuda {
class Queue;
void run(const AttentionForward& op, Queue& queue);
void run(const AttentionBackward& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
