// Tiles of bf16 in shared memory and the pieces of them that tensor cores take, for attention on tensor cores: a warp
// has 16 rows of a product. For .cu files.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/attention_span.h"
#include "kernels/cuda/device.h"

namespace kvloom::cuda {

inline constexpr int kAttentionThreads = 128;
inline constexpr int kAttentionWarps = 4;
inline constexpr int kWarpRows = 16;

// kRows rows of kDim elements. Eight elements of padding put the eight rows that one access reads on different banks.
template <int kRows, int kDim>
struct Tile {
  static constexpr int kStride = kDim + 8;
  static constexpr int kElements = kRows * kStride;
  static constexpr std::size_t kBytes = kElements * sizeof(Bf16);

  Bf16* data;

  __device__ __forceinline__ Bf16* row(int r) const { return data + r * kStride; }

  // Starts copying rows [first, first + kRows), zeros for those outside [span.begin, span.end), where none is looked
  // for. All threads of the block take part.
  template <typename FromRows>
  __device__ __forceinline__ void load(const FromRows& from, std::int64_t first, Span span) const {
    constexpr int kPacks = kDim / 8;
#pragma unroll
    for (int i = thread_index(); i < kRows * kPacks; i += kAttentionThreads) {
      const int r = i / kPacks;
      const int c = i % kPacks * 8;
      const bool inside = first + r >= span.begin && first + r < span.end;
      copy_async_16(row(r) + c, inside ? from.at(first + r) + c : from.base, inside);
    }
  }

  __device__ __forceinline__ void load(const Bf16* from, std::int64_t stride, std::int64_t first, Span span) const {
    load(DenseRows<Bf16>{from, stride}, first, span);
  }

  // Rows [r, r + 16) and columns [c, c + 16) as a left operand.
  __device__ __forceinline__ void left(std::uint32_t (&a)[4], int r, int c) const {
    const int lane = thread_index() % 32;
    load_matrices(a, row(r + lane % 16) + c + lane / 16 * 8);
  }
  // The transpose of rows [r, r + 16) and columns [c, c + 16) as two right operands of 8 columns each: b[0], b[1] and
  // b[2], b[3]. Products then sum over this tile's columns.
  __device__ __forceinline__ void right_transposed(std::uint32_t (&b)[4], int r, int c) const {
    const int lane = thread_index() % 32;
    load_matrices(b, row(r + lane / 16 * 8 + lane % 8) + c + lane / 8 % 2 * 8);
  }
  // Rows [r, r + 16) and columns [c, c + 16) as two right operands of 8 columns each. Products then sum over this
  // tile's rows.
  __device__ __forceinline__ void right(std::uint32_t (&b)[4], int r, int c) const {
    const int lane = thread_index() % 32;
    load_matrices_transposed(b, row(r + lane % 16) + c + lane / 16 * 8);
  }
};

// A warp's [16, 8 kPieces] of f32: element e of piece p is row g + 8 (e / 2), column 8 p + 2 t + e % 2, with
// g = lane / 4 and t = lane % 4.
template <int kPieces>
struct Accumulator {
  float piece[kPieces][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
#pragma unroll
      for (int e = 0; e < 4; ++e) piece[p][e] = 0;
    }
  }
  __device__ static __forceinline__ int row(int e) { return thread_index() % 32 / 4 + e / 2 * 8; }
  __device__ static __forceinline__ int column(int p, int e) { return 8 * p + thread_index() % 4 * 2 + e % 2; }

  // Columns [16 k, 16 k + 16) rounded to bf16, as a left operand.
  __device__ __forceinline__ void as_left(std::uint32_t (&a)[4], int k) const {
    a[0] = pack_bf16(piece[2 * k][0], piece[2 * k][1]);
    a[1] = pack_bf16(piece[2 * k][2], piece[2 * k][3]);
    a[2] = pack_bf16(piece[2 * k + 1][0], piece[2 * k + 1][1]);
    a[3] = pack_bf16(piece[2 * k + 1][2], piece[2 * k + 1][3]);
  }
};

// sum += left rows [r, r + 16) times the transpose of `right`, whose rows are the sum's columns.
template <int kLeftRows, int kRightRows, int kDim>
__device__ __forceinline__ void add_row_products(const Tile<kLeftRows, kDim>& left, int r,
                                                 const Tile<kRightRows, kDim>& right,
                                                 Accumulator<kRightRows / 8>& sum) {
#pragma unroll
  for (int c = 0; c < kDim; c += 16) {
    std::uint32_t a[4];
    left.left(a, r, c);
#pragma unroll
    for (int n = 0; n < kRightRows; n += 16) {
      std::uint32_t b[4];
      right.right_transposed(b, n, c);
      multiply_add(sum.piece[n / 8], a, b[0], b[1]);
      multiply_add(sum.piece[n / 8 + 1], a, b[2], b[3]);
    }
  }
}

// sum += weights [16, kRows] times `rows`.
template <int kRows, int kDim>
__device__ __forceinline__ void add_weighted_rows(const Accumulator<kRows / 8>& weights, const Tile<kRows, kDim>& rows,
                                                  Accumulator<kDim / 8>& sum) {
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) {
    std::uint32_t a[4];
    weights.as_left(a, k);
#pragma unroll
    for (int c = 0; c < kDim; c += 16) {
      std::uint32_t b[4];
      rows.right(b, 16 * k, c);
      multiply_add(sum.piece[c / 8], a, b[0], b[1]);
      multiply_add(sum.piece[c / 8 + 1], a, b[2], b[3]);
    }
  }
}

// Turns scores into weights below the rows' running maxima, and brings `sums` down to these. softmax[i] is that of row
// g + 8 i; the four lanes of a row keep equal maxima, and each its own part of the total.
template <int kScores, int kPieces>
__device__ __forceinline__ void take_in(Accumulator<kScores>& scores, RunningSoftmax (&softmax)[2],
                                        Accumulator<kPieces>& sums) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float largest = kNothing;
#pragma unroll
    for (int p = 0; p < kScores; ++p) {
      largest = fmaxf(largest, fmaxf(scores.piece[p][2 * i], scores.piece[p][2 * i + 1]));
    }
    largest = fmaxf(largest, shuffle_xor(largest, 1));
    largest = fmaxf(largest, shuffle_xor(largest, 2));
    const float factor = softmax[i].raise(largest);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      sums.piece[p][2 * i] *= factor;
      sums.piece[p][2 * i + 1] *= factor;
    }
#pragma unroll
    for (int p = 0; p < kScores; ++p) {
#pragma unroll
      for (int e = 2 * i; e < 2 * i + 2; ++e) {
        scores.piece[p][e] = softmax[i].weight(scores.piece[p][e]);
        softmax[i].total += scores.piece[p][e];
      }
    }
  }
}

// Whether every query of rows [first, first + count) sees every key of [key, key + keys).
__device__ __forceinline__ bool sees_all(const AttentionShape& shape, std::int64_t first, std::int64_t count,
                                         std::int64_t key, std::int64_t keys) {
  if (first + count > shape.queries) return false;
  return keys_of_query(shape, first).end >= key + keys && keys_of_query(shape, first + count - 1).begin <= key;
}

}  // namespace kvloom::cuda
