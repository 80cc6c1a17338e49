#include "kernels/cpu/cast_stored_types.h"

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <type_traits>

#include "kernels/cpu/element.h"

namespace kvloom::cpu {
namespace {

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
  for_row_pieces<In, Out>(op, [](const In* in, Out* out, std::int64_t count) {
#pragma omp simd
    for (std::int64_t c = 0; c < count; ++c) {
      if constexpr (std::is_same_v<In, double> && sizeof(Out) == 2) {
        store(out, c, round_to_odd(in[c]));
      } else {
        store(out, c, load(in, c));
      }
    }
  });
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

}  // namespace

void cast_stored_types(const Cast& op) {
  with_cast_type(op.input_dtype, [&]<typename In>(In*) {
    with_cast_type(op.output_dtype, [&]<typename Out>(Out*) { cast<In, Out>(op); });
  });
}

}  // namespace kvloom::cpu
