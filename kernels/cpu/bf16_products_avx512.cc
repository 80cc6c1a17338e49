#include <hwy/base.h>
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/bf16_products.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16")

namespace kvloom::cpu {
namespace {

constexpr int kMostRows = 6;
constexpr int kPanels = 4;

template <int kRows, int kCount>
HWY_NOINLINE void multiply_block(const Bf16Product& product, std::int64_t row, std::int64_t panel) {
  float* c = product.c + row * product.c_stride + panel * 16;
  __m512 sums[kRows][kCount];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kCount; ++j) {
      sums[i][j] = product.output == Output::kAccumulate ? _mm512_loadu_ps(c + i * product.c_stride + j * 16)
                                                         : _mm512_setzero_ps();
    }
  }
  const BFloat16* a = product.a + row * product.a_stride;
  const char* b = product.b + panel * product.inner * 32;
  for (std::int64_t k = 0; k < product.inner; k += 2, a += 2, b += 64) {
    __m512i weights[kCount];
    for (int j = 0; j < kCount; ++j) weights[j] = _mm512_load_si512(b + j * product.inner * 32);
    for (int i = 0; i < kRows; ++i) {
      int pair;
      std::memcpy(&pair, a + i * product.a_stride, sizeof pair);
      const __m512i left = _mm512_set1_epi32(pair);
      for (int j = 0; j < kCount; ++j) {
        sums[i][j] = _mm512_dpbf16_ps(sums[i][j], (__m512bh)left, (__m512bh)weights[j]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kCount; ++j) _mm512_storeu_ps(c + i * product.c_stride + j * 16, sums[i][j]);
  }
}

template <int kCount>
void multiply_rows(const Bf16Product& product, std::int64_t panel) {
  std::int64_t row = 0;
  for (; row + kMostRows <= product.rows; row += kMostRows) multiply_block<kMostRows, kCount>(product, row, panel);
  switch (product.rows - row) {
    case 5:
      return multiply_block<5, kCount>(product, row, panel);
    case 4:
      return multiply_block<4, kCount>(product, row, panel);
    case 3:
      return multiply_block<3, kCount>(product, row, panel);
    case 2:
      return multiply_block<2, kCount>(product, row, panel);
    case 1:
      return multiply_block<1, kCount>(product, row, panel);
    default:
      return;
  }
}

void multiply(const Bf16Product& product, std::int64_t&) {
  std::int64_t panel = 0;
  for (; panel + kPanels <= product.panels; panel += kPanels) multiply_rows<kPanels>(product, panel);
  for (; panel < product.panels; ++panel) multiply_rows<1>(product, panel);
}

#pragma GCC pop_options

std::int64_t begin() { return 0; }
void end() {}

}  // namespace

Bf16Products avx512_bf16_products() { return {"avx512-bf16", begin, multiply, nullptr, end}; }

}  // namespace kvloom::cpu
