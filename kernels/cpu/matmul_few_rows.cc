#include "kernels/cpu/matmul_few_rows.h"

#include <algorithm>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_few_rows.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::ScalableTag<float>;
using Vector = hn::Vec<Floats>;

HWY_INLINE Vector load(const float* from) { return hn::LoadU(Floats(), from); }

HWY_INLINE Vector load(const BFloat16* from) {
  const Floats d;
  const hn::Rebind<std::uint16_t, Floats> halves;
  const hn::RebindToUnsigned<Floats> words;
  const auto bits = hn::LoadU(halves, reinterpret_cast<const std::uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(words, bits)));
}

void store(const Matmul& op, std::int64_t row, std::int64_t column, float value) {
  const std::int64_t at = row * op.c_stride + column;
  if (op.output_dtype == DType::kF32) {
    float& c = static_cast<float*>(op.c)[at];
    c = op.output == Output::kAccumulate ? c + value : value;
  } else {
    BFloat16& c = static_cast<BFloat16*>(op.c)[at];
    c = BFloat16(op.output == Output::kAccumulate ? static_cast<float>(c) + value : value);
  }
}

// kRows rows from `row` times kColumns columns from `column`. `a` is f32, dense.
template <int kRows, int kColumns, typename T>
void multiply_tile(const Matmul& op, const float* HWY_RESTRICT a, std::int64_t row, std::int64_t column) {
  const Floats d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const T* HWY_RESTRICT b = static_cast<const T*>(op.b) + column * op.b_stride;
  a += row * op.inner;
  Vector sums[kRows][kColumns];
  for (auto& of_row : sums) {
    for (auto& sum : of_row) sum = hn::Zero(d);
  }
  std::int64_t k = 0;
  for (; k + lanes <= op.inner; k += lanes) {
    Vector weights[kColumns];
    for (int j = 0; j < kColumns; ++j) weights[j] = load(b + j * op.b_stride + k);
    for (int i = 0; i < kRows; ++i) {
      const Vector x = hn::LoadU(d, a + i * op.inner + k);
      for (int j = 0; j < kColumns; ++j) sums[i][j] = hn::MulAdd(x, weights[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      float sum = hn::GetLane(hn::SumOfLanes(d, sums[i][j]));
      for (std::int64_t rest = k; rest < op.inner; ++rest) {
        sum += a[i * op.inner + rest] * static_cast<float>(b[j * op.b_stride + rest]);
      }
      store(op, row + i, column + j, sum);
    }
  }
}

template <int kColumns, typename T>
void multiply_columns(const Matmul& op, const float* a, std::int64_t column) {
  std::int64_t row = 0;
  for (; row + 4 <= op.rows; row += 4) multiply_tile<4, kColumns, T>(op, a, row, column);
  switch (op.rows - row) {
    case 3:
      return multiply_tile<3, kColumns, T>(op, a, row, column);
    case 2:
      return multiply_tile<2, kColumns, T>(op, a, row, column);
    case 1:
      return multiply_tile<1, kColumns, T>(op, a, row, column);
    default:
      return;
  }
}

template <typename T>
void multiply_range_of(const Matmul& op, const float* a, std::int64_t begin, std::int64_t end) {
  std::int64_t column = begin;
  for (; column + 4 <= end; column += 4) multiply_columns<4, T>(op, a, column);
  for (; column < end; ++column) multiply_columns<1, T>(op, a, column);
}

void multiply_range(const Matmul& op, const float* a, std::int64_t begin, std::int64_t end) {
  if (op.operand_dtype == DType::kF32) {
    multiply_range_of<float>(op, a, begin, end);
  } else {
    multiply_range_of<BFloat16>(op, a, begin, end);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {

HWY_EXPORT(multiply_range);

template <typename T>
void widen_rows(const Matmul& op, float* to) {
  const T* from = static_cast<const T*>(op.a);
  for (std::int64_t row = 0; row < op.rows; ++row) {
    for (std::int64_t k = 0; k < op.inner; ++k) {
      to[row * op.inner + k] = static_cast<float>(from[row * op.a_stride + k]);
    }
  }
}

}  // namespace

void multiply_few_rows(const Matmul& op) {
  constexpr std::int64_t kChunk = 64;  // columns a thread takes at a time: a multiple of the tile's
  // Weights that one core reads in some tens of microseconds: below it a team of threads costs more than it saves.
  constexpr std::int64_t kWorthThreads = std::int64_t{1} << 18;
  std::vector<float> a(static_cast<std::size_t>(op.rows * op.inner));
  if (op.operand_dtype == DType::kF32) {
    widen_rows<float>(op, a.data());
  } else {
    widen_rows<BFloat16>(op, a.data());
  }
  const auto multiply = HWY_DYNAMIC_DISPATCH(multiply_range);
  const std::int64_t chunks = (op.columns + kChunk - 1) / kChunk;
#pragma omp parallel for schedule(static) if (op.columns * op.inner >= kWorthThreads)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    multiply(op, a.data(), chunk * kChunk, std::min(op.columns, (chunk + 1) * kChunk));
  }
}

}  // namespace kvloom::cpu
#endif
