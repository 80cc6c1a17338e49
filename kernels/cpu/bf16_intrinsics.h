// Pieces that the kernels of processors with AVX-512's bf16 share. Included where a target pragma names it.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "kernels/cpu/packed_kernels.h"
#include "kernels/cpu/packed_layout.h"

namespace kvloom::cpu {
namespace {

// The bytes of bf16 of |level|, 0 to 127.
struct LevelTables {
  LevelTables() {
    for (int level = 0; level < 128; ++level) {
      const std::uint16_t bits = BFloat16(static_cast<float>(level)).bits;
      low[level] = static_cast<std::uint8_t>(bits & 0xff);
      high[level] = static_cast<std::uint8_t>(bits >> 8);
    }
  }
  alignas(64) std::uint8_t low[128];
  alignas(64) std::uint8_t high[128];
};

// int8 levels as bf16, exactly.
class Levels {
 public:
  Levels() {
    static const LevelTables tables;
    for (int half = 0; half < 2; ++half) {
      low_[half] = _mm512_load_si512(tables.low + 64 * half);
      high_[half] = _mm512_load_si512(tables.high + 64 * half);
    }
  }

  struct Pairs {
    __m512i first;   // [16][2], of inputs 0 and 1
    __m512i second;  // of inputs 2 and 3
  };

  // A row of the layout's dwords: [16][0, 2, 1, 3].
  __attribute__((always_inline)) inline Pairs widen(__m512i levels) const {
    const __m512i size = _mm512_abs_epi8(levels);
    const __m512i low = _mm512_permutex2var_epi8(low_[0], size, low_[1]);
    const __m512i unsigned_high = _mm512_permutex2var_epi8(high_[0], size, high_[1]);
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    // high | (levels & sign)
    const __m512i high = _mm512_ternarylogic_epi64(unsigned_high, levels, sign, 0xf8);
    const __m512i low_bytes = _mm512_set1_epi16(0x00ff);
    // (a & mask) | (b & ~mask)
    const __m512i first = _mm512_ternarylogic_epi64(low_bytes, low, _mm512_slli_epi16(high, 8), 0xca);
    const __m512i second = _mm512_ternarylogic_epi64(low_bytes, _mm512_srli_epi16(low, 8), high, 0xca);
    return {first, second};
  }

 private:
  __m512i low_[2];
  __m512i high_[2];
};

// A panel of int8 as one of bf16.
inline void widen_panel(const Levels& levels, const char* from, std::int64_t inner, char* to) {
  for (std::int64_t k = 0; k < inner; k += 4, from += 64, to += 128) {
    const Levels::Pairs pairs = levels.widen(_mm512_load_si512(from));
    _mm512_store_si512(to, pairs.first);
    _mm512_store_si512(to + 64, pairs.second);
  }
}

// What comes after the sums of a panel: the same operations in every company. A panel behind the last writes nothing.
class FinishPanel {
 public:
  __attribute__((always_inline)) inline FinishPanel(const PackedPart& part, std::int64_t panel)
      : part_(part), first_(panel * kPanel) {
    const std::int64_t count = std::clamp<std::int64_t>(part.shape.outputs - first_, 0, kPanel);
    mask_ = static_cast<__mmask16>((1u << count) - 1u);
    scale_ = _mm512_set1_ps(1.0f);
    bias_ = _mm512_setzero_ps();
    if (part.shape.format == WeightFormat::kInt8 && count > 0) {
      scale_ = _mm512_load_ps(scales_of(part.shape, part.packed) + first_);
    }
    if (part.bias != nullptr) bias_ = _mm512_maskz_loadu_ps(mask_, part.bias + first_);
  }

  __attribute__((always_inline)) inline void write(std::int64_t row, __m512 sum) const {
    const std::int64_t at = row * part_.output_stride + first_;
    sum = finished(sum);
    if (part_.output_dtype == DType::kF32) {
      if (part_.addend != nullptr) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask_, static_cast<const float*>(part_.addend) + at));
      }
      return _mm512_mask_storeu_ps(static_cast<float*>(part_.output) + at, mask_, sum);
    }
    if (part_.addend != nullptr) {
      const __m256i halves = _mm256_maskz_loadu_epi16(mask_, static_cast<const BFloat16*>(part_.addend) + at);
      sum = _mm512_add_ps(sum, widened(halves));
    }
    const auto rounded = (__m256i)_mm512_cvtneps_pbh(sum);
    _mm256_mask_storeu_epi16(static_cast<BFloat16*>(part_.output) + at, mask_, rounded);
  }

  // As write of both, `next` being the panel after.
  __attribute__((always_inline)) inline void write_two(std::int64_t row, __m512 sum, const FinishPanel& next,
                                                       __m512 next_sum) const {
    if (part_.output_dtype != DType::kBF16 || next.mask_ != 0xffff) {
      write(row, sum);
      next.write(row, next_sum);
      return;
    }
    const std::int64_t at = row * part_.output_stride + first_;
    sum = finished(sum);
    next_sum = next.finished(next_sum);
    if (part_.addend != nullptr) {
      const __m512i halves = _mm512_loadu_si512(static_cast<const BFloat16*>(part_.addend) + at);
      sum = _mm512_add_ps(sum, widened(_mm512_castsi512_si256(halves)));
      next_sum = _mm512_add_ps(next_sum, widened(_mm512_extracti64x4_epi64(halves, 1)));
    }
    _mm512_storeu_si512(static_cast<BFloat16*>(part_.output) + at, (__m512i)_mm512_cvtne2ps_pbh(next_sum, sum));
  }

 private:
  __attribute__((always_inline)) inline __m512 finished(__m512 sum) const {
    return _mm512_add_ps(_mm512_mul_ps(sum, scale_), bias_);
  }
  __attribute__((always_inline)) static inline __m512 widened(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }

  const PackedPart& part_;
  std::int64_t first_;
  __mmask16 mask_;
  __m512 scale_;
  __m512 bias_;
};

}  // namespace
}  // namespace kvloom::cpu
