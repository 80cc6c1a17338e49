#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/tile_products.cc"
#include <hwy/foreach_target.h>
// Highway includes this file once a target, and the headers' guards keep the rest single.
#include <hwy/highway.h>

#include <algorithm>

#include "kernels/cpu/tile_products.h"
#include "kernels/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;

// A block of kRows x (vectors * lanes) of c stays in registers over the whole inner loop.
template <int kRows, int kVectors>
HWY_INLINE void block(const TileProduct& op, std::int64_t row, std::int64_t column) {
  const D d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::Vec<D> sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = op.output == Output::kAccumulate ? hn::LoadU(d, op.c + (row + r) * op.c_stride + column + v * lanes)
                                                   : hn::Zero(d);
    }
  }
  const float* a = op.a + row * op.a_stride;
  const float* b = op.b + column;
  for (std::int64_t k = 0; k < op.inner; ++k) {
    hn::Vec<D> right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = hn::LoadU(d, b + k * op.b_stride + v * lanes);
    for (int r = 0; r < kRows; ++r) {
      const auto left = hn::Set(d, a[r * op.a_stride + k * op.a_inner_stride]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(left, right[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sum[r][v], d, op.c + (row + r) * op.c_stride + column + v * lanes);
    }
  }
}

HWY_INLINE void scalar_columns(const TileProduct& op, std::int64_t row, std::int64_t rows, std::int64_t column) {
  for (std::int64_t r = row; r < row + rows; ++r) {
    for (std::int64_t c = column; c < op.columns; ++c) {
      float sum = op.output == Output::kAccumulate ? op.c[r * op.c_stride + c] : 0.0f;
      for (std::int64_t k = 0; k < op.inner; ++k)
        sum += op.a[r * op.a_stride + k * op.a_inner_stride] * op.b[k * op.b_stride + c];
      op.c[r * op.c_stride + c] = sum;
    }
  }
}

template <int kRows>
HWY_INLINE void row_block(const TileProduct& op, std::int64_t row) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(D()));
  std::int64_t column = 0;
  // 6 x 4 sums, 4 of b and one of a fit AVX-512's 32 registers; AVX2 has 16, for 6 x 2.
  constexpr int kWide = HWY_MAX_BYTES >= 64 ? 4 : 2;
  for (; column + kWide * lanes <= op.columns; column += kWide * lanes) block<kRows, kWide>(op, row, column);
  for (; column + lanes <= op.columns; column += lanes) block<kRows, 1>(op, row, column);
  if (column < op.columns) scalar_columns(op, row, kRows, column);
}

void multiply(const TileProduct& op) {
  std::int64_t row = 0;
  for (; row + 6 <= op.rows; row += 6) row_block<6>(op, row);
  for (; row + 2 <= op.rows; row += 2) row_block<2>(op, row);
  if (row < op.rows) row_block<1>(op, row);
}

// fast_exp of kernels/cpu/vector_math.h, on a vector.
HWY_INLINE hn::Vec<D> exp_of(hn::Vec<D> x) {
  const D d;
  const hn::RebindToSigned<D> di;
  const auto clamped = hn::Min(hn::Max(x, hn::Set(d, -87.0f)), hn::Set(d, 88.7f));
  const auto n = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504f)));
  const auto r = hn::MulAdd(n, hn::Set(d, 2.12194440e-4f), hn::NegMulAdd(n, hn::Set(d, 0.693359375f), clamped));
  auto p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  const auto value = hn::Add(hn::MulAdd(hn::Mul(p, r), r, r), hn::Set(d, 1.0f));
  const auto power = hn::ConvertTo(di, n);
  const auto half = hn::ShiftRight<1>(power);
  const auto bias = hn::Set(di, 127);
  const auto low = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const auto high = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(power, half), bias)));
  const auto scaled = hn::Mul(hn::Mul(value, low), high);
  return hn::IfThenElseZero(hn::Ge(x, hn::Set(d, -87.0f)), scaled);
}

void exponentiate(const TileExp& op) {
  const D d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto scale = hn::Set(d, op.scale);
  for (std::int64_t r = 0; r < op.rows; ++r) {
    float* row = op.scores + r * op.stride;
    const std::int64_t begin = std::clamp<std::int64_t>(op.begin[r], 0, op.columns);
    const std::int64_t end = std::clamp<std::int64_t>(op.end[r], begin, op.columns);
    std::fill(row, row + begin, 0.0f);
    std::fill(row + end, row + op.columns, 0.0f);
    const auto shift = hn::Set(d, op.shift[r]);
    auto sum = hn::Zero(d);
    std::int64_t c = begin;
    for (; c + lanes <= end; c += lanes) {
      const auto value = exp_of(hn::MulSub(hn::LoadU(d, row + c), scale, shift));
      hn::StoreU(value, d, row + c);
      sum = hn::Add(sum, value);
    }
    float total = hn::GetLane(hn::SumOfLanes(d, sum));
    for (; c < end; ++c) {
      row[c] = fast_exp(row[c] * op.scale - op.shift[r]);
      total += row[c];
    }
    op.sums[r] = total;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
HWY_EXPORT(multiply);
HWY_EXPORT(exponentiate);

void multiply_tile(const TileProduct& op) { HWY_DYNAMIC_DISPATCH(multiply)(op); }
void exponentiate_tile(const TileExp& op) { HWY_DYNAMIC_DISPATCH(exponentiate)(op); }

}  // namespace kvloom::cpu
#endif
