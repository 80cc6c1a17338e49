#include "kernels/elementwise.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/cast_stored_types.h"
#include "kernels/cpu/element.h"
#include "kernels/cpu/pieces.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr std::int64_t kParallelElements = 1 << 15;
constexpr std::int64_t kChunkRows = 64;
constexpr std::int64_t kRowsAtOnce = 8;

template <typename T>
void add_piece(const Add& op, std::int64_t begin, std::int64_t end) {
  for_vectors(begin, end, [&](auto place) HWY_ATTR {
    const Vector sum = hn::Add(place.load(static_cast<const T*>(op.a)), place.load(static_cast<const T*>(op.b)));
    place.store(sum, static_cast<T*>(op.output));
  });
}

template <typename In, typename Out>
void cast_piece(const In* in, Out* out, std::int64_t count) {
  for_vectors(0, count, [&](auto place) HWY_ATTR { place.store(place.load(in), out); });
}

template <typename T>
void add_bias(const BiasForward& op, std::int64_t r) {
  T* row = static_cast<T*>(op.data) + r * op.stride;
  for_vectors(0, op.columns,
              [&](auto place) HWY_ATTR { place.store(hn::Add(place.load(row), place.load(op.bias)), row); });
}

// sum[c] += rows[r, c], r by r. A few rows at once, so that a sum is loaded and stored less often.
template <typename T>
void add_rows(const T* rows, std::int64_t count, std::int64_t columns, std::int64_t stride, float* sum) {
  for (std::int64_t first = 0; first < count; first += kRowsAtOnce) {
    const std::int64_t some = std::min(kRowsAtOnce, count - first);
    const T* begin = rows + first * stride;
    for_vectors(0, columns, [&](auto place) HWY_ATTR {
      Vector total = place.load(sum);
      for (std::int64_t r = 0; r < some; ++r) total = hn::Add(total, place.load(begin + r * stride));
      place.store(total, sum);
    });
  }
}

void add(const Add& op) {
  with_element_type(op.dtype, "add", [&]<typename T>(T*) {
    for_pieces(op.count, [&](std::int64_t begin, std::int64_t end) { add_piece<T>(op, begin, end); });
  });
}

// Between f32 and bf16.
void cast(const Cast& op) {
  with_element_type(op.input_dtype, "cast", [&]<typename In>(In*) {
    with_element_type(op.output_dtype, "cast", [&]<typename Out>(Out*) {
      for_row_pieces<In, Out>(op, [&](const In* in, Out* out, std::int64_t count) { cast_piece(in, out, count); });
    });
  });
}

void bias_forward(const BiasForward& op) {
  with_element_type(op.dtype, "bias", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
    for (std::int64_t r = 0; r < op.rows; ++r) add_bias<T>(op, r);
  });
}

// Chunks of rows are fixed, so that the sums never depend on the number of threads.
void bias_backward(const BiasBackward& op) {
  const std::int64_t chunk = std::max(kChunkRows, (op.rows + 255) / 256);
  const std::int64_t chunks = (op.rows + chunk - 1) / chunk;
  std::vector<float> sums(static_cast<std::size_t>(chunks * op.columns), 0.0f);
  with_element_type(op.dtype, "bias_backward", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
    for (std::int64_t n = 0; n < chunks; ++n) {
      add_rows(static_cast<const T*>(op.grad_output) + n * chunk * op.stride, std::min(chunk, op.rows - n * chunk),
               op.columns, op.stride, sums.data() + n * op.columns);
    }
  });
  add_rows(sums.data(), chunks, op.columns, op.columns, op.grad_bias);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(add);
HWY_EXPORT(cast);
HWY_EXPORT(bias_forward);
HWY_EXPORT(bias_backward);

bool computes_on(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16; }
}  // namespace

void run(const Add& op) { HWY_DYNAMIC_DISPATCH(add)(op); }

void run(const Cast& op) {
  if (computes_on(op.input_dtype) && computes_on(op.output_dtype)) return HWY_DYNAMIC_DISPATCH(cast)(op);
  cast_stored_types(op);
}

void run(const BiasForward& op) { HWY_DYNAMIC_DISPATCH(bias_forward)(op); }
void run(const Advance& op) {
  for (std::int64_t i = 0; i < op.count; ++i) op.values[i] += op.by;
}
void run(const BiasBackward& op) { HWY_DYNAMIC_DISPATCH(bias_backward)(op); }

}  // namespace kvloom::cpu
#endif
