// Vectorised pieces that attention's passes share: widening, packing, products of tiles in registers, exponentials.
// Included once for every instruction set. Tiles are f32; their rows are whole vectors (`padded`).
#if defined(KVLOOM_ATTENTION_TILES_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVLOOM_ATTENTION_TILES_INL
#undef KVLOOM_ATTENTION_TILES_INL
#else
#define KVLOOM_ATTENTION_TILES_INL
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_span.h"
#include "kernels/cpu/vectors-inl.h"
#include "kernels/matmul.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {
// `padded` counts on vectors of at most this many lanes.
static_assert(kMostLanes == 16);

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// to[0, padded(count)) = scale * from[0, count), then zeros.
template <typename T>
void widen_row(const T* from, std::int64_t count, float scale, float* HWY_RESTRICT to) {
  const Floats d;
  std::int64_t i = 0;
  for (; i + lanes() <= count; i += lanes()) {
    hn::StoreU(hn::Mul(load_vector(from + i), hn::Set(d, scale)), d, to + i);
  }
  for (; i < count; ++i) to[i] = static_cast<float>(from[i]) * scale;
  for (; i < padded(count); ++i) to[i] = 0;
}

HWY_INLINE void widen(const void* from, DType dtype, std::int64_t offset, std::int64_t count, float scale, float* to) {
  if (dtype == DType::kF32) {
    widen_row(static_cast<const float*>(from) + offset, count, scale, to);
  } else {
    widen_row(static_cast<const BFloat16*>(from) + offset, count, scale, to);
  }
}

HWY_INLINE void narrow(const float* from, std::int64_t count, float scale, void* to, DType dtype, std::int64_t offset) {
  if (dtype == DType::kF32) {
    float* out = static_cast<float*>(to) + offset;
    for (std::int64_t i = 0; i < count; ++i) out[i] = from[i] * scale;
  } else {
    BFloat16* out = static_cast<BFloat16*>(to) + offset;
    for (std::int64_t i = 0; i < count; ++i) out[i] = BFloat16(from[i] * scale);
  }
}

// to [columns, kKeyBlock] = from [rows, columns] turned; columns of absent rows are zero.
inline void turn(const float* HWY_RESTRICT from, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                 float* HWY_RESTRICT to) {
  for (std::int64_t i = 0; i < columns; ++i) {
    float* row = to + i * kKeyBlock;
    for (std::int64_t j = 0; j < rows; ++j) row[j] = from[j * stride + i];
    for (std::int64_t j = rows; j < kKeyBlock; ++j) row[j] = 0;
  }
}

// A tile operand that is read one element at a time, so that a turned one costs nothing.
struct Left {
  const float* data;
  std::int64_t row_stride;
  std::int64_t inner_stride;
};

struct Tile {
  float* data;
  std::int64_t stride;
};

template <int kRows, int kVectors>
HWY_INLINE void multiply_registers(Left a, const float* HWY_RESTRICT b, std::int64_t b_stride, float* HWY_RESTRICT c,
                                   std::int64_t c_stride, std::int64_t inner, Output output) {
  const Floats d;
  Vector sums[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      sums[i][j] = output == Output::kAccumulate ? hn::LoadU(d, c + i * c_stride + j * lanes()) : hn::Zero(d);
    }
  }
  for (std::int64_t k = 0; k < inner; ++k) {
    Vector right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = hn::LoadU(d, b + k * b_stride + j * lanes());
    for (int i = 0; i < kRows; ++i) {
      const Vector left = hn::Set(d, a.data[i * a.row_stride + k * a.inner_stride]);
      for (int j = 0; j < kVectors; ++j) sums[i][j] = hn::MulAdd(left, right[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) hn::StoreU(sums[i][j], d, c + i * c_stride + j * lanes());
  }
}

template <int kVectors>
void multiply_strip(Left a, const float* b, std::int64_t b_stride, Tile c, std::int64_t rows, std::int64_t inner,
                    Output output) {
  std::int64_t i = 0;
  for (; i + 4 <= rows; i += 4, a.data += 4 * a.row_stride) {
    multiply_registers<4, kVectors>(a, b, b_stride, c.data + i * c.stride, c.stride, inner, output);
  }
  for (; i < rows; ++i, a.data += a.row_stride) {
    multiply_registers<1, kVectors>(a, b, b_stride, c.data + i * c.stride, c.stride, inner, output);
  }
}

// c [rows, columns] (= or +=) a [rows, inner] b [inner, columns]; columns whole vectors.
inline void multiply_tiles(Left a, const float* b, std::int64_t b_stride, Tile c, std::int64_t rows,
                           std::int64_t columns, std::int64_t inner, Output output) {
  constexpr int kVectors = HWY_MAX_BYTES >= 64 ? 4 : 2;  // 16 or 8 sums: half or more of the registers
  std::int64_t j = 0;
  for (; j + kVectors * lanes() <= columns; j += kVectors * lanes()) {
    multiply_strip<kVectors>(a, b + j, b_stride, {c.data + j, c.stride}, rows, inner, output);
  }
  for (; j + lanes() <= columns; j += lanes()) {
    multiply_strip<1>(a, b + j, b_stride, {c.data + j, c.stride}, rows, inner, output);
  }
}

// Largest of values[0, count), count a whole number of vectors.
HWY_INLINE float largest(const float* values, std::int64_t count) {
  const Floats d;
  Vector most = hn::Set(d, kMinusInfinity);
  for (std::int64_t i = 0; i < count; i += lanes()) most = hn::Max(most, hn::LoadU(d, values + i));
  return hn::GetLane(hn::MaxOfLanes(d, most));
}

// values = exp(values - shift); returns their sum. An element of -infinity becomes zero, NaN stays NaN.
HWY_INLINE float exponentiate(float* values, std::int64_t count, float shift) {
  const Floats d;
  Vector sum = hn::Zero(d);
  for (std::int64_t i = 0; i < count; i += lanes()) {
    const Vector e = exponential(hn::Sub(hn::LoadU(d, values + i), fill(shift)));
    hn::StoreU(e, d, values + i);
    sum = hn::Add(sum, e);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

HWY_INLINE void multiply_row(float* values, std::int64_t count, float factor) {
  const Floats d;
  for (std::int64_t i = 0; i < count; i += lanes()) {
    hn::StoreU(hn::Mul(hn::LoadU(d, values + i), hn::Set(d, factor)), d, values + i);
  }
}

// The running maximum and denominator of one softmax row.
struct Softmax {
  float most = kMinusInfinity;
  float sum = 0;
};

// Takes a row of scores of which [begin, end) count, in the online softmax: scores become weights, `total` is
// rescaled to the new maximum.
inline void absorb_row(float* scores, std::int64_t count, Span span, Softmax& state, float* total,
                       std::int64_t total_size) {
  if (span.begin >= span.end) {
    std::fill(scores, scores + count, 0.0f);
    return;
  }
  std::fill(scores, scores + span.begin, kMinusInfinity);
  std::fill(scores + span.end, scores + count, kMinusInfinity);
  const float most = std::max(state.most, largest(scores, count));
  const float keep = state.most == kMinusInfinity ? 0.0f : std::exp(state.most - most);
  state.sum = state.sum * keep + exponentiate(scores, count, most);
  state.most = most;
  if (keep != 1.0f) multiply_row(total, total_size, keep);
}

// The part of a block of keys, counted from its first, that lies in `span`.
HWY_INLINE Span within_block(Span span, std::int64_t first, std::int64_t size) {
  return {std::clamp<std::int64_t>(span.begin - first, 0, size), std::clamp<std::int64_t>(span.end - first, 0, size)};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#endif
