#include "kernels/swiglu.h"

#include "kernels/cpu/element.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/swiglu.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr std::int64_t kParallelElements = 1 << 13;

template <typename T>
void forward_row(const SwigluForward& op, std::int64_t r) {
  const T* gate = static_cast<const T*>(op.gate_up) + 2 * r * op.columns;
  const T* up = gate + op.columns;
  T* out = static_cast<T*>(op.output) + r * op.columns;
  for_vectors(0, op.columns, [&](auto place) HWY_ATTR {
    const Vector g = place.load(gate);
    place.store(hn::Mul(hn::Mul(g, sigmoid(g)), place.load(up)), out);
  });
}

// d silu(g) = s (1 + g (1 - s)) with s = sigmoid(g).
template <typename T>
void backward_row(const SwigluBackward& op, std::int64_t r) {
  const T* gate = static_cast<const T*>(op.gate_up) + 2 * r * op.columns;
  const T* up = gate + op.columns;
  const T* grad = static_cast<const T*>(op.grad_output) + r * op.columns;
  T* grad_gate = static_cast<T*>(op.grad_gate_up) + 2 * r * op.columns;
  T* grad_up = grad_gate + op.columns;
  const Vector one = fill(1.0f);
  for_vectors(0, op.columns, [&](auto place) HWY_ATTR {
    const Vector g = place.load(gate);
    const Vector u = place.load(up);
    const Vector s = sigmoid(g);
    const Vector ds = hn::Mul(place.load(grad), s);
    place.store(hn::Mul(hn::Mul(ds, u), hn::MulAdd(g, hn::Sub(one, s), one)), grad_gate);
    place.store(hn::Mul(ds, g), grad_up);
  });
}

void forward(const SwigluForward& op) {
  with_element_type(op.dtype, "swiglu", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
    for (std::int64_t r = 0; r < op.rows; ++r) forward_row<T>(op, r);
  });
}

void backward(const SwigluBackward& op) {
  with_element_type(op.dtype, "swiglu_backward", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * op.columns > kParallelElements)
    for (std::int64_t r = 0; r < op.rows; ++r) backward_row<T>(op, r);
  });
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

void run(const SwigluForward& op) { HWY_DYNAMIC_DISPATCH(forward)(op); }
void run(const SwigluBackward& op) { HWY_DYNAMIC_DISPATCH(backward)(op); }

}  // namespace kvloom::cpu
#endif
