#include "kernels/elementwise.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>
#include <vector>

#include "kernels/cpu/vector_math.h"

namespace kvloom::cpu {
namespace {

constexpr std::int64_t kParallelElements = 1 << 15;
constexpr std::int64_t kChunkRows = 64;

struct Float16 {
  std::uint16_t bits;
};
float load(const Float16* data, std::int64_t i) { return _cvtsh_ss(data[i].bits); }
float load(const double* data, std::int64_t i) { return static_cast<float>(data[i]); }
void store(Float16* data, std::int64_t i, float value) {
  data[i].bits = static_cast<std::uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
}
void store(double* data, std::int64_t i, float value) { data[i] = static_cast<double>(value); }
using kvloom::cpu::load;
using kvloom::cpu::store;

// The f32 towards zero from x, its last bit set when that is not x: rounding it again, to 16 bits, then gives what
// rounding x at once would (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums").
float round_to_odd(double x) {
  const auto nearest = static_cast<float>(x);
  if (static_cast<double>(nearest) == x || std::isnan(x)) return nearest;
  const auto bits = std::bit_cast<std::uint32_t>(nearest);
  const bool away_from_zero = std::fabs(static_cast<double>(nearest)) > std::fabs(x);
  return std::bit_cast<float>((away_from_zero ? bits - 1 : bits) | 1u);
}

template <typename In, typename Out>
void cast(const Cast& op) {
  const std::int64_t in_stride = op.input_stride > 0 ? op.input_stride : op.columns;
  const std::int64_t out_stride = op.output_stride > 0 ? op.output_stride : op.columns;
  // One long row is cut into pieces, so that threads share it.
  constexpr std::int64_t kPiece = 4096;
  const std::int64_t pieces = (op.columns + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
  for (std::int64_t n = 0; n < op.rows * pieces; ++n) {
    const In* in = static_cast<const In*>(op.input) + n / pieces * in_stride;
    Out* out = static_cast<Out*>(op.output) + n / pieces * out_stride;
    const std::int64_t begin = n % pieces * kPiece;
    const std::int64_t end = std::min(op.columns, begin + kPiece);
#pragma omp simd
    for (std::int64_t c = begin; c < end; ++c) {
      if constexpr (std::is_same_v<In, double> && sizeof(Out) == 2) {
        store(out, c, round_to_odd(in[c]));
      } else {
        store(out, c, load(in, c));
      }
    }
  }
}

template <typename Function>
void with_cast_type(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kF32:
      return function(static_cast<float*>(nullptr));
    case DType::kBF16:
      return function(static_cast<BFloat16*>(nullptr));
    case DType::kF16:
      return function(static_cast<Float16*>(nullptr));
    case DType::kF64:
      return function(static_cast<double*>(nullptr));
    default:
      fail("cast: knows f32, bf16, f16 and f64, not {}", name_of(dtype));
  }
}

template <typename T>
void add(const Add& op) {
  const T* a = static_cast<const T*>(op.a);
  const T* b = static_cast<const T*>(op.b);
  T* out = static_cast<T*>(op.output);
#pragma omp parallel for simd schedule(static) if (op.count > kParallelElements)
  for (std::int64_t i = 0; i < op.count; ++i) store(out, i, load(a, i) + load(b, i));
}

template <typename T>
void bias_forward(const BiasForward& op) {
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
  for (std::int64_t r = 0; r < op.rows; ++r) {
    T* row = static_cast<T*>(op.data) + r * op.stride;
#pragma omp simd
    for (std::int64_t c = 0; c < op.columns; ++c) store(row, c, load(row, c) + op.bias[c]);
  }
}

// Chunks of rows are fixed, so that the sums never depend on the number of threads.
template <typename T>
void bias_backward(const BiasBackward& op) {
  const std::int64_t chunk = std::max(kChunkRows, (op.rows + 255) / 256);
  const std::int64_t chunks = (op.rows + chunk - 1) / chunk;
  std::vector<float> sums(static_cast<std::size_t>(chunks * op.columns), 0.0f);
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
  for (std::int64_t n = 0; n < chunks; ++n) {
    float* sum = sums.data() + n * op.columns;
    for (std::int64_t r = n * chunk; r < std::min(op.rows, (n + 1) * chunk); ++r) {
      const T* row = static_cast<const T*>(op.grad_output) + r * op.stride;
#pragma omp simd
      for (std::int64_t c = 0; c < op.columns; ++c) sum[c] += load(row, c);
    }
  }
  for (std::int64_t n = 0; n < chunks; ++n) {
    for (std::int64_t c = 0; c < op.columns; ++c) op.grad_bias[c] += sums[static_cast<std::size_t>(n * op.columns + c)];
  }
}

}  // namespace

void run(const Add& op) {
  with_element_type(op.dtype, "add", [&]<typename T>(T*) { add<T>(op); });
}

void run(const Cast& op) {
  with_cast_type(op.input_dtype, [&]<typename In>(In*) {
    with_cast_type(op.output_dtype, [&]<typename Out>(Out*) { cast<In, Out>(op); });
  });
}

void run(const BiasForward& op) {
  with_element_type(op.dtype, "bias", [&]<typename T>(T*) { bias_forward<T>(op); });
}

void run(const BiasBackward& op) {
  with_element_type(op.dtype, "bias_backward", [&]<typename T>(T*) { bias_backward<T>(op); });
}

}  // namespace kvloom::cpu
