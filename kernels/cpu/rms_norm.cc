#include "kernels/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/vector_math.h"

namespace kvloom::cpu {
namespace {

// Rows whose gain gradients are summed together, fixed so that the sums never depend on the number of threads.
constexpr std::int64_t kChunkRows = 64;
constexpr std::int64_t kParallelElements = 1 << 14;

template <typename T>
void forward(const RmsNormForward& op) {
  const std::int64_t in_stride = op.input_stride > 0 ? op.input_stride : op.columns;
  const std::int64_t out_stride = op.output_stride > 0 ? op.output_stride : op.columns;
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const T* in = static_cast<const T*>(op.input) + r * in_stride;
    T* out = static_cast<T*>(op.output) + r * out_stride;
    float square = 0;
#pragma omp simd reduction(+ : square)
    for (std::int64_t c = 0; c < op.columns; ++c) square += load(in, c) * load(in, c);
    const float scale = 1.0f / std::sqrt(square / static_cast<float>(op.columns) + op.epsilon);
    if (op.inverse_rms != nullptr) op.inverse_rms[r] = scale;
#pragma omp simd
    for (std::int64_t c = 0; c < op.columns; ++c) store(out, c, load(in, c) * scale * op.gain[c]);
  }
}

// One row: d input = scale * (gain * g - input * scale^2 * mean(gain * g * input)), and its part of d gain.
template <typename T>
void backward_row(const RmsNormBackward& op, const T* in, const T* grad, T* out, float scale, float* gain_sums) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t c = 0; c < op.columns; ++c) dot += load(grad, c) * op.gain[c] * load(in, c);
  const float mean = dot * scale * scale / static_cast<float>(op.columns);
  if (op.accumulate_input) {
#pragma omp simd
    for (std::int64_t c = 0; c < op.columns; ++c) {
      const float g = load(grad, c);
      const float x = load(in, c);
      gain_sums[c] += g * x * scale;
      store(out, c, load(out, c) + scale * (op.gain[c] * g - x * mean));
    }
    return;
  }
#pragma omp simd
  for (std::int64_t c = 0; c < op.columns; ++c) {
    const float g = load(grad, c);
    const float x = load(in, c);
    gain_sums[c] += g * x * scale;
    store(out, c, scale * (op.gain[c] * g - x * mean));
  }
}

template <typename T>
void backward(const RmsNormBackward& op) {
  const std::int64_t in_stride = op.input_stride > 0 ? op.input_stride : op.columns;
  const std::int64_t out_stride = op.grad_input_stride > 0 ? op.grad_input_stride : op.columns;
  const std::int64_t chunk = std::max(kChunkRows, (op.rows + 255) / 256);
  const std::int64_t chunks = (op.rows + chunk - 1) / chunk;
  std::vector<float> sums(static_cast<std::size_t>(chunks * op.columns), 0.0f);
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
  for (std::int64_t n = 0; n < chunks; ++n) {
    for (std::int64_t r = n * chunk; r < std::min(op.rows, (n + 1) * chunk); ++r) {
      backward_row(op, static_cast<const T*>(op.input) + r * in_stride,
                   static_cast<const T*>(op.grad_output) + r * op.columns,
                   static_cast<T*>(op.grad_input) + r * out_stride, op.inverse_rms[r], sums.data() + n * op.columns);
    }
  }
  for (std::int64_t n = 0; n < chunks; ++n) {
    for (std::int64_t c = 0; c < op.columns; ++c) op.grad_gain[c] += sums[static_cast<std::size_t>(n * op.columns + c)];
  }
}

}  // namespace

void run(const RmsNormForward& op) {
  with_element_type(op.dtype, "rms_norm", [&]<typename T>(T*) { forward<T>(op); });
}

void run(const RmsNormBackward& op) {
  with_element_type(op.dtype, "rms_norm_backward", [&]<typename T>(T*) { backward<T>(op); });
}

}  // namespace kvloom::cpu
