// Rows of dwords turned into columns: what packs weights and keys.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace kvloom::cpu {

// Rows at addresses of their own, a multiple of 4 of them, `dwords` long.
struct DwordRows {
  const std::uint32_t* const* rows;
  std::int64_t count;
  std::int64_t dwords;
};

// to (=) [dwords][count], rows `stride` dwords apart.
inline void turn_dwords(const DwordRows& from, std::uint32_t* to, std::int64_t stride) {
  const auto load = [&](std::int64_t row, std::int64_t k) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from.rows[row] + k));
  };
  const auto store = [&](std::int64_t k, std::int64_t row, __m128i value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + k * stride + row), value);
  };
  std::int64_t k = 0;
  for (; k + 4 <= from.dwords; k += 4) {
    for (std::int64_t row = 0; row < from.count; row += 4) {
      const __m128i a = load(row, k);
      const __m128i b = load(row + 1, k);
      const __m128i c = load(row + 2, k);
      const __m128i d = load(row + 3, k);
      const __m128i ab_low = _mm_unpacklo_epi32(a, b);
      const __m128i ab_high = _mm_unpackhi_epi32(a, b);
      const __m128i cd_low = _mm_unpacklo_epi32(c, d);
      const __m128i cd_high = _mm_unpackhi_epi32(c, d);
      store(k, row, _mm_unpacklo_epi64(ab_low, cd_low));
      store(k + 1, row, _mm_unpackhi_epi64(ab_low, cd_low));
      store(k + 2, row, _mm_unpacklo_epi64(ab_high, cd_high));
      store(k + 3, row, _mm_unpackhi_epi64(ab_high, cd_high));
    }
  }
  for (; k < from.dwords; ++k) {
    for (std::int64_t row = 0; row < from.count; ++row) to[k * stride + row] = from.rows[row][k];
  }
}

}  // namespace kvloom::cpu
