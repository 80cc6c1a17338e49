// Rows of elements as packs of 16 bytes where their places allow it, else as single elements; and sums over the threads
// that share a row. For .cu files.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string_view>

#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "kernels/dtype.h"
#include "kernels/error.h"

namespace kvloom::cuda {

template <typename T>
inline constexpr int kPackOf = static_cast<int>(16 / sizeof(T));  // elements in 16 bytes

inline bool is_aligned(const void* data, std::size_t bytes = 16) {
  return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

inline bool are_aligned(std::initializer_list<const void*> all) {
  for (const void* data : all) {
    if (!is_aligned(data)) return false;
  }
  return true;
}

inline bool are_multiples(std::initializer_list<std::int64_t> all, std::int64_t of) {
  for (const std::int64_t value : all) {
    if (value % of != 0) return false;
  }
  return true;
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Calls body.operator()<T>() with the device's element type, f32 or bf16.
template <typename Body>
void with_compute_type(DType dtype, std::string_view operation, Body&& body) {
  if (dtype == DType::kF32) return body.template operator()<float>();
  if (dtype == DType::kBF16) return body.template operator()<Bf16>();
  fail("{}: computes in f32 or bf16, not {}", operation, name_of(dtype));
}

// Calls body.operator()<T, N>(): N elements of 16 bytes when `packed`, else 1.
template <typename T, typename Body>
void with_pack(bool packed, Body&& body) {
  if (packed) return body.template operator()<T, kPackOf<T>>();
  return body.template operator()<T, 1>();
}

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
  if constexpr (sizeof(T) * N < 8) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
  } else {
    std::uint32_t words[sizeof(T) * N / 4];
    load_words(words, from);
    Pack<T, N> pack;
    memcpy(&pack, words, sizeof(pack));
    return pack;
  }
}

template <int N, typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& pack) {
  if constexpr (sizeof(T) * N < 8) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
  } else {
    std::uint32_t words[sizeof(T) * N / 4];
    memcpy(words, &pack, sizeof(pack));
    store_words(to, words);
  }
}

// N floats beside N elements of another type: as many 16-byte accesses as they take, when N is more than one.
template <int N>
struct Floats {
  float value[N];
};

template <int N>
__device__ __forceinline__ Floats<N> load_floats(const float* from) {
  Floats<N> result;
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const Pack<float, 4> part = load_pack<4>(from + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) result.value[i + j] = part.value[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) result.value[i] = from[i];
  }
  return result;
}

template <int N>
__device__ __forceinline__ void store_floats(float* to, const Floats<N>& values) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      store_pack<4>(to + i,
                    Pack<float, 4>{{values.value[i], values.value[i + 1], values.value[i + 2], values.value[i + 3]}});
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = values.value[i];
  }
}

inline constexpr int kWarp = 32;

struct Plus {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

// All lanes get the combination of all lanes' values, formed in one order whatever the lane.
template <typename T, typename Combine>
__device__ __forceinline__ T combine_of_warp(T value, Combine combine) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const T other = shuffle_xor(value, mask);
    value = combine(value, other);
  }
  return value;
}

// The same over kThreads threads that share a row: a warp, or a whole block of kThreads (a multiple of 32). A block
// then passes two barriers, and all its threads must come here.
template <int kThreads, typename T, typename Combine>
__device__ __forceinline__ T combine_of_group(T value, Combine combine) {
  value = combine_of_warp(value, combine);
  if constexpr (kThreads > kWarp) {
    __shared__ T parts[kThreads / kWarp];
    const int warp = thread_index() / kWarp;
    block_barrier();  // the values of the last call have been read
    if (thread_index() % kWarp == 0) parts[warp] = value;
    block_barrier();
    value = parts[0];
#pragma unroll
    for (int i = 1; i < kThreads / kWarp; ++i) value = combine(value, parts[i]);
  }
  return value;
}

}  // namespace kvloom::cuda
