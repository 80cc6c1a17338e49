#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/few_rows.cc"
#include <hwy/foreach_target.h>
// Highway includes this file once a target, and the headers' guards keep the rest single.
#include <hwy/highway.h>

#include <algorithm>
#include <vector>

#include "kernels/cpu/few_rows.h"
#include "kernels/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Weight rows read at once: one stream a thread leaves half of the bandwidth unused.
constexpr int kStreams = 4;

template <class D>
HWY_INLINE hn::Vec<D> load_wide(D d, const float* data) {
  return hn::LoadU(d, data);
}

template <class D>
HWY_INLINE hn::Vec<D> load_wide(D d, const BFloat16* data) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(data));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}

// sums[s] = the products of `a` (f32) with `streams` rows of b, b_stride apart.
template <typename T, int streams>
HWY_INLINE void dots(const float* HWY_RESTRICT a, const T* HWY_RESTRICT b, std::int64_t b_stride, std::int64_t inner,
                     float* HWY_RESTRICT sums) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sum[2][4];
  for (int s = 0; s < streams; ++s) sum[0][s] = sum[1][s] = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + 2 * lanes <= inner; i += 2 * lanes) {
    const auto low = hn::LoadU(d, a + i);
    const auto high = hn::LoadU(d, a + i + lanes);
    for (int s = 0; s < streams; ++s) {
      sum[0][s] = hn::MulAdd(low, load_wide(d, b + s * b_stride + i), sum[0][s]);
      sum[1][s] = hn::MulAdd(high, load_wide(d, b + s * b_stride + i + lanes), sum[1][s]);
    }
  }
  for (int s = 0; s < streams; ++s) {
    float total = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum[0][s], sum[1][s])));
    for (std::int64_t rest = i; rest < inner; ++rest) total += a[rest] * load(b + s * b_stride, rest);
    sums[s] = total;
  }
}

template <typename T>
void store_sum(const Matmul& op, std::int64_t at, float sum) {
  T* c = static_cast<T*>(op.c);
  store(c, at, op.output == Output::kAccumulate ? load(c, at) + sum : sum);
}

void put(const Matmul& op, std::int64_t at, float sum) {
  if (op.output_dtype == DType::kF32) {
    store_sum<float>(op, at, sum);
  } else {
    store_sum<BFloat16>(op, at, sum);
  }
}

// Columns [begin, end) of every row. Rows are the inner loop, so that a block of weights is read from memory once.
template <typename T>
void multiply(const Matmul& op, const float* a, std::int64_t b_stride, std::int64_t c_stride, std::int64_t begin,
              std::int64_t end) {
  const T* b = static_cast<const T*>(op.b);
  float sums[kStreams];
  for (std::int64_t column = begin; column < end;) {
    const bool whole = column + kStreams <= end;
    for (std::int64_t row = 0; row < op.rows; ++row) {
      if (whole) {
        dots<T, kStreams>(a + row * op.inner, b + column * b_stride, b_stride, op.inner, sums);
      } else {
        dots<T, 1>(a + row * op.inner, b + column * b_stride, b_stride, op.inner, sums);
      }
      for (int s = 0; s < (whole ? kStreams : 1); ++s) put(op, row * c_stride + column + s, sums[s]);
    }
    column += whole ? kStreams : 1;
  }
}

void multiply_columns(const Matmul& op, const float* a, std::int64_t b_stride, std::int64_t c_stride,
                      std::int64_t begin, std::int64_t end) {
  if (op.operand_dtype == DType::kF32) {
    multiply<float>(op, a, b_stride, c_stride, begin, end);
  } else {
    multiply<BFloat16>(op, a, b_stride, c_stride, begin, end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
HWY_EXPORT(multiply_columns);

void multiply_few_rows(const Matmul& op, std::int64_t a_stride, std::int64_t b_stride, std::int64_t c_stride) {
  std::vector<float> a(static_cast<std::size_t>(op.rows * op.inner));
  with_element_type(op.operand_dtype, "matmul", [&]<typename T>(T*) {
    for (std::int64_t r = 0; r < op.rows; ++r) {
      const T* row = static_cast<const T*>(op.a) + r * a_stride;
      for (std::int64_t i = 0; i < op.inner; ++i) a[static_cast<std::size_t>(r * op.inner + i)] = load(row, i);
    }
  });
  constexpr std::int64_t kBlock = 16;
  const std::int64_t blocks = (op.columns + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (op.columns * op.inner > (1 << 16))
  for (std::int64_t block = 0; block < blocks; ++block) {
    HWY_DYNAMIC_DISPATCH(multiply_columns)
    (op, a.data(), b_stride, c_stride, block * kBlock, std::min(op.columns, (block + 1) * kBlock));
  }
}

}  // namespace kvloom::cpu
#endif
