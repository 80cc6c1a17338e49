#include "kernels/swiglu.h"

#include <type_traits>

#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;

// A block has kBlock packs of a row: `blocks_of_row` blocks a row. Divides in 32 bits, which is as far as grids go.
struct Shape {
  std::int64_t packs;
  std::uint32_t blocks_of_row;

  __device__ __forceinline__ std::int64_t row() const {
    return static_cast<std::uint32_t>(block_index()) / blocks_of_row;
  }
  __device__ __forceinline__ std::int64_t pack() const {
    const std::uint32_t block = static_cast<std::uint32_t>(block_index()) % blocks_of_row;
    return std::int64_t{block} * kBlock + thread_index();
  }
};

// For results of type T: bf16 has no use for the last bits of an exponential and a division, which cost more than all
// else.
template <typename T>
__device__ __forceinline__ float sigmoid(float x) {
  constexpr float kLog2E = 1.4426950408889634f;
  if constexpr (std::is_same_v<T, Bf16>) return reciprocal_flushed(1.0f + exp2_flushed(-kLog2E * x));
  return 1.0f / (1.0f + expf(-x));
}

template <typename T, int N>
__global__ void __launch_bounds__(kBlock) swiglu_forward(const T* gate_up, T* output, Shape shape) {
  const std::int64_t row = shape.row();
  const std::int64_t p = shape.pack();
  if (p >= shape.packs) return;
  const std::int64_t columns = shape.packs * N;
  const Pack<T, N> gates = load_pack<N>(gate_up + 2 * row * columns + p * N);
  const Pack<T, N> ups = load_pack<N>(gate_up + (2 * row + 1) * columns + p * N);
  Pack<T, N> result;
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const float gate = to_float(gates.value[e]);
    result.value[e] = from_float<T>(gate * sigmoid<T>(gate) * to_float(ups.value[e]));
  }
  store_pack(output + row * columns + p * N, result);
}

// d silu(x) / dx = s (1 + x (1 - s)) with s = sigmoid(x).
template <typename T, int N>
__global__ void __launch_bounds__(kBlock)
    swiglu_backward(const T* gate_up, const T* grad_output, T* grad_gate_up, Shape shape) {
  const std::int64_t row = shape.row();
  const std::int64_t p = shape.pack();
  if (p >= shape.packs) return;
  const std::int64_t columns = shape.packs * N;
  const std::int64_t gate_at = 2 * row * columns + p * N;
  const Pack<T, N> gates = load_pack<N>(gate_up + gate_at);
  const Pack<T, N> ups = load_pack<N>(gate_up + gate_at + columns);
  const Pack<T, N> gradients = load_pack<N>(grad_output + row * columns + p * N);
  Pack<T, N> grad_gates;
  Pack<T, N> grad_ups;
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const float gate = to_float(gates.value[e]);
    const float gradient = to_float(gradients.value[e]);
    const float s = sigmoid<T>(gate);
    grad_gates.value[e] = from_float<T>(gradient * to_float(ups.value[e]) * s * (1.0f + gate * (1.0f - s)));
    grad_ups.value[e] = from_float<T>(gradient * gate * s);
  }
  store_pack(grad_gate_up + gate_at, grad_gates);
  store_pack(grad_gate_up + gate_at + columns, grad_ups);
}

Shape shape_of(std::int64_t columns, int pack) {
  return {columns / pack, static_cast<std::uint32_t>(ceil_div(columns / pack, kBlock))};
}

}  // namespace

void run(const SwigluForward& op, Queue& queue) {
  if (op.rows == 0 || op.columns == 0) return;
  with_compute_type(op.dtype, "swiglu", [&]<typename T>() {
    with_pack<T>(op.columns % kPackOf<T> == 0 && are_aligned({op.gate_up, op.output}), [&]<typename U, int N>() {
      const Shape shape = shape_of(op.columns, N);
      launch("swiglu_forward", swiglu_forward<U, N>, {.blocks = op.rows * shape.blocks_of_row, .threads = kBlock},
             queue, static_cast<const U*>(op.gate_up), static_cast<U*>(op.output), shape);
    });
  });
}

void run(const SwigluBackward& op, Queue& queue) {
  if (op.rows == 0 || op.columns == 0) return;
  with_compute_type(op.dtype, "swiglu", [&]<typename T>() {
    const bool packed = op.columns % kPackOf<T> == 0 && are_aligned({op.gate_up, op.grad_output, op.grad_gate_up});
    with_pack<T>(packed, [&]<typename U, int N>() {
      const Shape shape = shape_of(op.columns, N);
      launch("swiglu_backward", swiglu_backward<U, N>, {.blocks = op.rows * shape.blocks_of_row, .threads = kBlock},
             queue, static_cast<const U*>(op.gate_up), static_cast<const U*>(op.grad_output),
             static_cast<U*>(op.grad_gate_up), shape);
    });
  });
}

}  // namespace kvloom::cuda
