// Rotary position embedding, Su et al. 2021 (arXiv 2104.09864), in the half-split layout of Llama and Hugging Face.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/pages.h"

namespace kvloom {

enum class Rotation : std::uint8_t { kForward, kBackward };  // backward: by the negative angle, the gradient

// data[r, h, :] = data[r, h, :] rotated, in place: with half = head_dim / 2, element d < half pairs with d + half and
// turns by the angle whose cosine and sine are cosine[p, d], sine[p, d] (f32 [positions, half]).
// data: [rows, heads, head_dim] of dtype, rows `stride` elements apart. Row r is of sequence s = r / row_period and
// stands at position p = first_position + starts[s] + r % row_period. A row at a negative position stands nowhere: it
// is neither read nor written.
struct Rope {
  void* data;
  const float* cosine;
  const float* sine;
  std::int64_t rows;
  std::int64_t heads;
  std::int64_t head_dim;
  std::int64_t stride;
  std::int64_t first_position = 0;
  std::int64_t row_period;
  Rotation rotation = Rotation::kForward;
  DType dtype = DType::kF32;
  const std::int32_t* starts = nullptr;  // [rows / row_period], in data's memory; null: zeros
};

// Where rows of a part of RopeSplit go.
enum class RowPlace : std::uint8_t {
  kDense,       // row r to row r
  kAtPosition,  // row r to its position's row of its sequence, r / row_period: into a cache
  kAtPage,      // row r to its position's row of the pool, which RopeSplit::page_table tells
};

enum class HeadTurn : std::uint8_t { kRotated, kAsIs };

// Heads that leave a row for a place of their own, rotated or as they are.
struct RopePart {
  const void* input;   // [rows, heads, head_dim], rows `input_stride` apart
  void* output;        // rows `output_stride` apart, and sequences `sequence_stride` (kAtPosition only)
  std::int64_t heads;  // 0: nothing to do
  std::int64_t input_stride;
  std::int64_t output_stride;
  std::int64_t sequence_stride = 0;
  RowPlace place = RowPlace::kDense;
  HeadTurn turn = HeadTurn::kRotated;
};

// output (=) of each part: the split of one product into Q, K and V, the rotation of Q and K, and the write of K and V
// into the KV store, in one pass. Rows stand where Rope says; element pairs and tables are Rope's, and so are the bits.
// A part's output may be its own input in the same places, and nothing else that is read here.
struct RopeSplit {
  RopePart parts[3];  // no std::array: its members are the host's alone
  const float* cosine;
  const float* sine;
  std::int64_t rows;
  std::int64_t head_dim;
  std::int64_t first_position = 0;
  std::int64_t row_period;
  DType dtype = DType::kF32;
  const std::int32_t* starts = nullptr;  // as Rope's
  PageTable page_table = {};             // for parts at kAtPage
};

namespace cpu {
void run(const Rope& op);
void run(const RopeSplit& op);
}  // namespace cpu

namespace cuda {
class Queue;
void run(const Rope& op, Queue& queue);
void run(const RopeSplit& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
