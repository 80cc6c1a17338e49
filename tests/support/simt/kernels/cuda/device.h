// The words of kernels/cuda/device.h, spoken by coroutines of the host (tests/support/simt/threads.h). This file stands
// before that one on the include path of the library that tests run kernels with.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/dtype.h"
#include "tests/support/simt/threads.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

namespace kvloom::cuda {

struct Bf16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};

inline float to_float(float value) { return value; }
inline float to_float(double value) { return static_cast<float>(value); }
inline float to_float(Bf16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }
inline float to_float(Half value) { return static_cast<float>(std::bit_cast<_Float16>(value.bits)); }

template <typename T>
T from_float(float value) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return {BFloat16(value).bits};
  } else if constexpr (std::is_same_v<T, Half>) {
    return {std::bit_cast<std::uint16_t>(static_cast<_Float16>(value))};
  } else {
    return static_cast<T>(value);
  }
}
inline std::uint32_t pack_bf16(float low, float high) {
  return BFloat16(low).bits | static_cast<std::uint32_t>(BFloat16(high).bits) << 16;
}

inline float exp2_flushed(float x) {
  const float result = std::exp2(x);
  return result < std::numeric_limits<float>::min() ? 0.0f : result;
}

inline int thread_index() { return simt::thread_index(); }
inline int block_size() { return simt::block_size(); }
inline std::int64_t block_index() { return simt::block_index(); }
inline std::int64_t block_count() { return simt::block_count(); }

inline void block_barrier() { simt::block_barrier(); }
inline bool any_of_block(bool yes) { return simt::any_of_block(yes); }
inline void warp_barrier() { simt::exchange("", 0); }

template <typename T>
T of_lane(simt::Lanes lanes, int lane) {
  T value;
  std::memcpy(&value, lanes[lane], sizeof(T));
  return value;
}

template <typename T>
T shuffle_xor(T value, int mask) {
  const int lane = thread_index() % simt::kWarp;
  return of_lane<T>(simt::exchange(&value, sizeof(T)), lane ^ mask);
}
inline std::uint32_t ballot(bool yes) {
  const simt::Lanes lanes = simt::exchange(&yes, sizeof(yes));
  std::uint32_t word = 0;
  for (int lane = 0; lane < simt::kWarp; ++lane) word |= static_cast<std::uint32_t>(of_lane<bool>(lanes, lane)) << lane;
  return word;
}
inline int count_bits(std::uint32_t word) { return __builtin_popcount(word); }

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(simt::dynamic_shared());
}

inline void require_aligned(const void* address, std::size_t bytes, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes == 0) return;
  std::fprintf(stderr, "simt: %s of an address that is no multiple of %zu\n", what, bytes);
  std::abort();
}

template <int N>
void load_words(std::uint32_t (&words)[N], const void* from) {
  require_aligned(from, sizeof(words), "load_words");
  std::memcpy(words, from, sizeof(words));
}
template <int N>
void store_words(void* to, const std::uint32_t (&words)[N]) {
  require_aligned(to, sizeof(words), "store_words");
  std::memcpy(to, words, sizeof(words));
}

inline void copy_async_16(void* shared, const void* from, bool valid) {
  require_aligned(shared, 16, "copy_async_16");
  if (valid) require_aligned(from, 16, "copy_async_16");
  simt::copy_async(shared, valid ? from : nullptr, 16);
}
inline void copy_async_commit() { simt::end_copy_group(); }
template <int kGroups>
void copy_async_wait() {
  simt::await_copy_groups(kGroups);
}

inline std::uint16_t matrix_element(simt::Lanes rows, int matrix, int row, int column) {
  std::uint16_t value;
  std::memcpy(&value, of_lane<const std::byte*>(rows, 8 * matrix + row) + 2 * column, sizeof(value));
  return value;
}
inline void load_matrices(std::uint32_t (&result)[4], const void* row) {
  require_aligned(row, 16, "load_matrices");
  const simt::Lanes rows = simt::exchange(&row, sizeof(row));
  const int lane = thread_index() % simt::kWarp;
  for (int m = 0; m < 4; ++m) {
    result[m] = matrix_element(rows, m, lane / 4, 2 * (lane % 4)) |
                static_cast<std::uint32_t>(matrix_element(rows, m, lane / 4, 2 * (lane % 4) + 1)) << 16;
  }
}
inline void load_matrices_transposed(std::uint32_t (&result)[4], const void* row) {
  require_aligned(row, 16, "load_matrices_transposed");
  const simt::Lanes rows = simt::exchange(&row, sizeof(row));
  const int lane = thread_index() % simt::kWarp;
  for (int m = 0; m < 4; ++m) {
    result[m] = matrix_element(rows, m, 2 * (lane % 4), lane / 4) |
                static_cast<std::uint32_t>(matrix_element(rows, m, 2 * (lane % 4) + 1, lane / 4)) << 16;
  }
}

struct ProductFragments {
  std::uint32_t a[4];
  std::uint32_t b[2];
};
inline float element_of(std::uint32_t word, int index) {
  return to_float(Bf16{static_cast<std::uint16_t>(word >> (16 * index))});
}
inline float of_a(simt::Lanes lanes, int row, int column) {
  const auto fragments = of_lane<ProductFragments>(lanes, row % 8 * 4 + column % 8 / 2);
  return element_of(fragments.a[row / 8 + 2 * (column / 8)], column % 2);
}
inline float of_b(simt::Lanes lanes, int row, int column) {
  const auto fragments = of_lane<ProductFragments>(lanes, column * 4 + row % 8 / 2);
  return element_of(fragments.b[row / 8], row % 2);
}
inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  const ProductFragments own{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const simt::Lanes lanes = simt::exchange(&own, sizeof(own));
  const int lane = thread_index() % simt::kWarp;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2);
    const int column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; ++k) c[i] += of_a(lanes, row, k) * of_b(lanes, k, column);
  }
}

}  // namespace kvloom::cuda
