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

  // Calls body(row, column) for the packs of 16 bytes that fall to this thread of the block.
  template <typename Body>
  __device__ static __forceinline__ void for_own_packs(Body&& body) {
    constexpr int kPacks = kDim / 8;
    constexpr int kPass = kAttentionThreads / kPacks;  // rows that the block has at once
    static_assert(kRows % kPass == 0);
    const int r = thread_index() / kPacks;
    const int c = thread_index() % kPacks * 8;
#pragma unroll
    for (int i = 0; i < kRows; i += kPass) body(r + i, c);
  }

  // Starts copying rows [first, first + kRows), zeros for those outside `range`. All threads of the block take part.
  __device__ __forceinline__ void load(const Bf16* from, std::int64_t stride, int first, Range range) const {
    for_own_packs(
        [&](int r, int c) { copy_async_16(row(r) + c, from + (first + r) * stride + c, range.has(first + r)); });
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

// The same of a tile of keys and one of their values: where a row lies is looked for once, and for none outside
// `range`, which is not empty.
template <int kRows, int kDim, typename FromRows>
__device__ __forceinline__ void load_pairs(const Tile<kRows, kDim>& key, const Tile<kRows, kDim>& value,
                                           const FromRows& keys, const Bf16* values, int first, Range range) {
  Tile<kRows, kDim>::for_own_packs([&](int r, int c) {
    const bool inside = range.has(first + r);
    const std::int64_t from = keys.offset_in(first + r, range) + c;
    copy_async_16(key.row(r) + c, keys.base + from, inside);
    copy_async_16(value.row(r) + c, values + from, inside);
  });
}

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

// Turns scores, which `scale` brings to units of base 2, into weights below the rows' running maxima, and brings `sums`
// down to these. softmax[i] is that of row g + 8 i; the four lanes of a row keep equal maxima, and each its own part of
// the total.
template <int kScores, int kPieces>
__device__ __forceinline__ void take_in(Accumulator<kScores>& scores, float scale, RunningSoftmax (&softmax)[2],
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
    const float factor = softmax[i].raise(largest * scale);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      sums.piece[p][2 * i] *= factor;
      sums.piece[p][2 * i + 1] *= factor;
    }
#pragma unroll
    for (int p = 0; p < kScores; ++p) {
#pragma unroll
      for (int e = 2 * i; e < 2 * i + 2; ++e) {
        scores.piece[p][e] = softmax[i].weight(scores.piece[p][e] * scale);
        softmax[i].total += scores.piece[p][e];
      }
    }
  }
}

// What a warp's rows see of the columns.
struct WarpSight {
  Range own[2];  // of rows g and g + 8
  Range all;     // what all 16 rows see

  // Makes kNothing of the scores of columns [first, first + 8 kPieces) that their rows do not see.
  template <int kPieces>
  __device__ __forceinline__ void mask(Accumulator<kPieces>& scores, int first) const {
    if (all.has_all(first, 8 * kPieces)) return;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (!own[e / 2].has(first + Accumulator<kPieces>::column(p, e))) scores.piece[p][e] = kNothing;
      }
    }
  }
};

// own(row) is what one of the 16 rows sees. Each sees as far as the one before or further, from there or later on; but
// rows past the last may see nothing.
template <typename Own>
__device__ __forceinline__ WarpSight sight_of_rows(Own&& own) {
  const int g = Accumulator<1>::row(0);
  const Span low = own(0);
  const Span high = own(kWarpRows - 1);
  return {{Range(own(g)), Range(own(g + 8))}, Range({high.begin, smaller(low.end, high.end)})};
}

}  // namespace kvloom::cuda
