#include "kernels/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/element.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rms_norm.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

// Rows whose gain gradients are summed together, fixed so that the sums never depend on the number of threads.
constexpr std::int64_t kChunkRows = 64;
constexpr std::int64_t kParallelElements = 1 << 14;

// The row that is normalised: the input's, or its sum with the addend's.
template <typename T>
const T* summed_row(const RmsNormForward& op, const T* in, std::int64_t r) {
  if (op.addend == nullptr) return in;
  const T* addend = static_cast<const T*>(op.addend) + r * op.columns;
  T* sum = static_cast<T*>(op.sum) + r * op.columns;
  for_vectors(0, op.columns,
              [&](auto place) HWY_ATTR { place.store(hn::Add(place.load(in), place.load(addend)), sum); });
  return sum;
}

template <typename T>
void forward_row(const RmsNormForward& op, const T* in, T* out, float* inverse_rms) {
  const float square = sum_over(op.columns, [&](Vector sum, auto place) HWY_ATTR {
    const Vector x = place.load(in);
    return hn::MulAdd(x, x, sum);
  });
  const float scale = 1.0f / std::sqrt(square / static_cast<float>(op.columns) + op.epsilon);
  if (inverse_rms != nullptr) *inverse_rms = scale;
  for_vectors(0, op.columns, [&](auto place) HWY_ATTR {
    place.store(hn::Mul(hn::Mul(place.load(in), fill(scale)), place.load(op.gain)), out);
  });
}

void forward(const RmsNormForward& op) {
  const std::int64_t in_stride = op.input_stride > 0 ? op.input_stride : op.columns;
  const std::int64_t out_stride = op.output_stride > 0 ? op.output_stride : op.columns;
  with_element_type(op.dtype, "rms_norm", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
    for (std::int64_t r = 0; r < op.rows; ++r) {
      forward_row(op, summed_row(op, static_cast<const T*>(op.input) + r * in_stride, r),
                  static_cast<T*>(op.output) + r * out_stride,
                  op.inverse_rms == nullptr ? nullptr : op.inverse_rms + r);
    }
  });
}

// One row: d input = scale * (gain * g - input * scale^2 * mean(gain * g * input)), and its part of d gain.
template <typename T>
void backward_row(const RmsNormBackward& op, const T* in, const T* grad, T* out, float scale, float* gain_sums) {
  const float dot = sum_over(op.columns, [&](Vector sum, auto place) HWY_ATTR {
    return hn::MulAdd(hn::Mul(place.load(grad), place.load(op.gain)), place.load(in), sum);
  });
  const Vector mean = fill(dot * scale * scale / static_cast<float>(op.columns));
  const Vector scales = fill(scale);
  for_vectors(0, op.columns, [&](auto place) HWY_ATTR {
    const Vector g = place.load(grad);
    const Vector x = place.load(in);
    place.store(hn::MulAdd(hn::Mul(g, x), scales, place.load(gain_sums)), gain_sums);
    const Vector change = hn::NegMulAdd(x, mean, hn::Mul(place.load(op.gain), g));
    const Vector before = op.accumulate_input ? place.load(out) : hn::Zero(Floats());
    place.store(hn::MulAdd(scales, change, before), out);
  });
}

void backward(const RmsNormBackward& op) {
  const std::int64_t in_stride = op.input_stride > 0 ? op.input_stride : op.columns;
  const std::int64_t out_stride = op.grad_input_stride > 0 ? op.grad_input_stride : op.columns;
  const std::int64_t chunk = std::max(kChunkRows, (op.rows + 255) / 256);
  const std::int64_t chunks = (op.rows + chunk - 1) / chunk;
  std::vector<float> sums(static_cast<std::size_t>(chunks * op.columns), 0.0f);
  with_element_type(op.dtype, "rms_norm_backward", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
    for (std::int64_t n = 0; n < chunks; ++n) {
      for (std::int64_t r = n * chunk; r < std::min(op.rows, (n + 1) * chunk); ++r) {
        backward_row(op, static_cast<const T*>(op.input) + r * in_stride,
                     static_cast<const T*>(op.grad_output) + r * op.columns,
                     static_cast<T*>(op.grad_input) + r * out_stride, op.inverse_rms[r], sums.data() + n * op.columns);
      }
    }
  });
  for (std::int64_t n = 0; n < chunks; ++n) {
    for (std::int64_t c = 0; c < op.columns; ++c) op.grad_gain[c] += sums[static_cast<std::size_t>(n * op.columns + c)];
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(forward);
HWY_EXPORT(backward);
}  // namespace

void run(const RmsNormForward& op) { HWY_DYNAMIC_DISPATCH(forward)(op); }
void run(const RmsNormBackward& op) { HWY_DYNAMIC_DISPATCH(backward)(op); }

}  // namespace kvloom::cpu
#endif
