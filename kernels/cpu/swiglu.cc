#include "kernels/swiglu.h"

#include "kernels/cpu/vector_math.h"

namespace kvloom::cpu {
namespace {

constexpr std::int64_t kParallelElements = 1 << 13;

template <typename T>
void forward(const SwigluForward& op) {
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const T* gate = static_cast<const T*>(op.gate_up) + 2 * r * op.columns;
    const T* up = gate + op.columns;
    T* out = static_cast<T*>(op.output) + r * op.columns;
#pragma omp simd
    for (std::int64_t c = 0; c < op.columns; ++c) {
      const float g = load(gate, c);
      store(out, c, g * sigmoid(g) * load(up, c));
    }
  }
}

// d silu(g) = s (1 + g (1 - s)) with s = sigmoid(g).
template <typename T>
void backward(const SwigluBackward& op) {
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const T* gate = static_cast<const T*>(op.gate_up) + 2 * r * op.columns;
    const T* up = gate + op.columns;
    const T* grad = static_cast<const T*>(op.grad_output) + r * op.columns;
    T* grad_gate = static_cast<T*>(op.grad_gate_up) + 2 * r * op.columns;
    T* grad_up = grad_gate + op.columns;
#pragma omp simd
    for (std::int64_t c = 0; c < op.columns; ++c) {
      const float g = load(gate, c);
      const float u = load(up, c);
      const float d = load(grad, c);
      const float s = sigmoid(g);
      store(grad_gate, c, d * u * s * (1.0f + g * (1.0f - s)));
      store(grad_up, c, d * g * s);
    }
  }
}

}  // namespace

void run(const SwigluForward& op) {
  with_element_type(op.dtype, "swiglu", [&]<typename T>(T*) { forward<T>(op); });
}

void run(const SwigluBackward& op) {
  with_element_type(op.dtype, "swiglu_backward", [&]<typename T>(T*) { backward<T>(op); });
}

}  // namespace kvloom::cpu
