// The words that kvloom's kernels are written in, for .cu files: element types, places in the grid, exchange between
// the threads of a warp and of a block, 16-byte memory accesses, tensor-core products. Everything that names an
// instruction or a register of the GPU is here, so that tests can run the kernels themselves with another set of the
// same words (tests/support/simt).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace kvloom::cuda {

struct Bf16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(double value) { return static_cast<float>(value); }
__device__ __forceinline__ float to_float(Bf16 value) {
  return __uint_as_float(static_cast<std::uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float to_float(Half value) { return __half2float(__ushort_as_half(value.bits)); }

// Rounded to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float value) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
  } else if constexpr (std::is_same_v<T, Half>) {
    return {__half_as_ushort(__float2half_rn(value))};
  } else {
    return static_cast<T>(value);
  }
}
// Two bf16 in one register, `low` at the lower address.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

// 2^x in one instruction, to 22 bits; 0 where that is below the smallest normal number, as of -infinity.
__device__ __forceinline__ float exp2_flushed(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}

// One-dimensional blocks and grids.
__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int block_size() { return static_cast<int>(blockDim.x); }
__device__ __forceinline__ std::int64_t block_index() { return static_cast<std::int64_t>(blockIdx.x); }
__device__ __forceinline__ std::int64_t block_count() { return static_cast<std::int64_t>(gridDim.x); }

__device__ __forceinline__ void block_barrier() { __syncthreads(); }
// A barrier; whether any thread of the block says yes.
__device__ __forceinline__ bool any_of_block(bool yes) { return __syncthreads_or(yes ? 1 : 0) != 0; }
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }
// All 32 lanes take part in these.
template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ __forceinline__ std::uint32_t ballot(bool yes) { return __ballot_sync(0xffffffffu, yes); }
__device__ __forceinline__ int count_bits(std::uint32_t word) { return __popc(word); }

// N elements read or written at once; 16 bytes where N says so, and then aligned to them.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

// 8 or 16 bytes of global memory in one access, aligned to as many. The compiler splits plain stores of as much.
__device__ __forceinline__ void load_words(std::uint32_t (&words)[2], const void* from) {
  const uint2 all = *static_cast<const uint2*>(from);
  words[0] = all.x;
  words[1] = all.y;
}
__device__ __forceinline__ void load_words(std::uint32_t (&words)[4], const void* from) {
  const uint4 all = *static_cast<const uint4*>(from);
  words[0] = all.x;
  words[1] = all.y;
  words[2] = all.z;
  words[3] = all.w;
}
__device__ __forceinline__ void store_words(void* to, const std::uint32_t (&words)[2]) {
  __stwb(static_cast<uint2*>(to), make_uint2(words[0], words[1]));
}
__device__ __forceinline__ void store_words(void* to, const std::uint32_t (&words)[4]) {
  __stwb(static_cast<uint4*>(to), make_uint4(words[0], words[1], words[2], words[3]));
}

// The memory of a block whose size the launch chooses, aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char kvloom_dynamic_shared[];
  return reinterpret_cast<T*>(kvloom_dynamic_shared);
}

// Copies 16 bytes from global to shared memory without waiting, zeros when `valid` is false (`from` is not read then).
__device__ __forceinline__ void copy_async_16(void* shared, const void* from, bool valid) {
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// Ends a group of copies; waits until at most kGroups of the thread's groups are under way.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int kGroups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
}

// Four 8x8 matrices of bf16 from shared memory: lane i gives the address of row i % 8 of matrix i / 8 (16 bytes,
// aligned). result[m] = of matrix m, row lane / 4, columns 2 (lane % 4) and the next; transposed: column lane / 4, rows
// 2 (lane % 4) and the next.
__device__ __forceinline__ void load_matrices(std::uint32_t (&result)[4], const void* row) {
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(at)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&result)[4], const void* row) {
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(at)
               : "memory");
}

// c += a b on tensor cores: a [16, 16] and b [16, 8] of bf16, c [16, 8] of f32. With g = lane / 4 and t = lane % 4:
//   a[0] row g, columns 2t and 2t + 1;  a[1] row g + 8;  a[2], a[3] the same 8 columns on
//   b[0] column g, rows 2t and 2t + 1;  b[1] the same 8 rows on
//   c[0], c[1] row g, columns 2t and 2t + 1;  c[2], c[3] row g + 8
__device__ __forceinline__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace kvloom::cuda
