// Attention of an inference step: rows of many sequences, each with queries of its own number and place, over K and V
// in pages (kernels/pages.h), and the write of new K and V into them.
//
// A query's result is a function of its own row, its position and the keys that it sees, in the order of their
// positions: its bits do not depend on other queries of the call, on which pages hold the keys, or on threads. So a
// prompt gives the same bits in one chunk or in many, and a decoded token the same as a prompt's (DESIGN 12).
#pragma once

#include <cstdint>
#include <span>

#include "kernels/attention.h"
#include "kernels/dtype.h"

namespace kvloom {

// How keys and values are kept.
enum class KvFormat : std::uint8_t {
  kF32,
  kBF16,
  kInt8,  // round(x / s) in -127..127 with s = max |x| / 127 of one head of one token, an f32 in a pool of scales
};

// Bytes of one token's K, or V, of `kv_heads` heads, scales included.
constexpr std::int64_t kv_row_bytes(KvFormat format, std::int64_t kv_heads, std::int64_t head_dim) {
  switch (format) {
    case KvFormat::kF32:
      return kv_heads * head_dim * 4;
    case KvFormat::kBF16:
      return kv_heads * head_dim * 2;
    case KvFormat::kInt8:
      return kv_heads * (head_dim + 4);
  }
  return 0;
}

// The keys of one source, or its values: rows [pages * page_size, kv_heads, head_dim], dense.
struct KvPool {
  void* rows;
  float* scales = nullptr;  // [pages * page_size, kv_heads], with kInt8 only
  KvFormat format = KvFormat::kF32;
};

// Consecutive rows of a call that belong to one sequence: row first_row + n stands at position first_position + n.
struct SequenceRows {
  std::int64_t first_row;
  std::int64_t rows;
  std::int64_t first_position;
  // Position j of the sequence lies in row pages[j / page_size] * page_size + j % page_size of the pools. Entries for
  // positions that no query of the call sees are not read.
  const std::int32_t* pages;
  // Likewise of the values, where they do not lie as the keys do. Null: as `pages` says.
  const std::int32_t* value_pages = nullptr;
};

// output (=) [rows, heads, head_dim] of `dtype`, rows `output_stride` elements apart: softmax(scale q K^T) V over the
// positions that visibility and window leave (DESIGN 4), exactly zero where a query sees nothing. Scores and sums in
// f32. Head h reads KV head h / (heads / kv_heads).
struct RaggedAttention {
  std::span<const SequenceRows> sequences;
  const void* query;  // [rows, heads, head_dim] of `dtype`, rows `query_stride` elements apart
  KvPool key;
  KvPool value;
  void* output;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  std::int64_t page_size;  // a power of two, 16 or more
  Visibility visibility = Visibility::kDownward;
  std::int64_t window = 0;         // W: also j > t - W; 0 means none
  float scale = 0;                 // above 0
  DType dtype = DType::kF32;       // f32 or bf16
  std::int64_t query_stride = 0;   // 0: dense
  std::int64_t output_stride = 0;  // 0: dense
};

// How far rows moved that were written over others.
struct KvMovement {
  float difference;  // max |new - old|, of the values as they are kept
  float value;       // max |new|
};

// pool (=) at each row's place: keys (rotated before) or values of new tokens.
struct StoreKvRows {
  const void* input;              // [rows, kv_heads, head_dim] of `dtype`, rows `input_stride` elements apart
  DType dtype;                    // f32 or bf16
  std::int64_t input_stride = 0;  // 0: dense
  KvPool pool;
  std::int64_t rows;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  const std::int64_t* places;  // [rows]: rows of the pool, each at most once
  // [rows] (=), or null: not asked. Where it is asked, the pool's rows held values before.
  KvMovement* movement = nullptr;
};

namespace cpu {
// Throw Error naming the values where shapes and formats do not go together.
void run(const RaggedAttention& op);
void run(const StoreKvRows& op);
}  // namespace cpu

}  // namespace kvloom
