#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;

// The bias-corrected step written as two constants, as on the CPU.
struct Constants {
  float beta1;
  float beta2;
  float epsilon;
  float gradient_scale;
  float step_size;      // learning_rate / bias1
  float inverse_bias2;  // 1 / sqrt(bias2)
  float decay;          // learning_rate * weight_decay
};

struct Buffers {
  float* weight;
  float* momentum;
  float* variance;
  const float* gradient;
  Bf16* copy;
};

// What is read is asked for before anything is written: a load that came after a store, or after the branches of a
// square root, would be a second wait for the memory.
template <int N>
__global__ void __launch_bounds__(kBlock) adamw(Buffers at, Constants by, std::int64_t first, std::int64_t packs) {
  const std::int64_t p = block_index() * kBlock + thread_index();
  if (p >= packs) return;
  const std::int64_t i = first + p * N;
  const Pack<float, N> gradient = load_pack<N>(at.gradient + i);
  Pack<float, N> weight = load_pack<N>(at.weight + i);
  Pack<float, N> momentum = load_pack<N>(at.momentum + i);
  Pack<float, N> variance = load_pack<N>(at.variance + i);
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const float g = gradient.value[e] * by.gradient_scale;
    momentum.value[e] = (1.0f - by.beta1) * g + by.beta1 * momentum.value[e];
    variance.value[e] = (1.0f - by.beta2) * g * g + by.beta2 * variance.value[e];
  }
  store_pack(at.momentum + i, momentum);
  store_pack(at.variance + i, variance);
  Pack<Bf16, N> copy;
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const float below = sqrtf(variance.value[e]) * by.inverse_bias2 + by.epsilon;
    weight.value[e] -= by.decay * weight.value[e] + by.step_size * momentum.value[e] / below;
    copy.value[e] = from_float<Bf16>(weight.value[e]);
  }
  store_pack(at.weight + i, weight);
  if (at.copy != nullptr) store_pack(at.copy + i, copy);
}

template <int N>
void start(const Buffers& buffers, const Constants& constants, std::int64_t first, std::int64_t packs, Queue& queue) {
  launch("adamw", adamw<N>, {.blocks = ceil_div(packs, kBlock), .threads = kBlock}, queue, buffers, constants, first,
         packs);
}

}  // namespace

void run(const AdamW& op, Queue& queue) {
  const double bias1 = 1 - std::pow(static_cast<double>(op.beta1), static_cast<double>(op.step));
  const double bias2 = 1 - std::pow(static_cast<double>(op.beta2), static_cast<double>(op.step));
  const Constants constants{.beta1 = op.beta1,
                            .beta2 = op.beta2,
                            .epsilon = op.epsilon,
                            .gradient_scale = op.gradient_scale,
                            .step_size = static_cast<float>(static_cast<double>(op.learning_rate) / bias1),
                            .inverse_bias2 = static_cast<float>(1 / std::sqrt(bias2)),
                            .decay = op.learning_rate * op.weight_decay};
  const Buffers buffers{op.weight, op.momentum, op.variance, op.gradient, reinterpret_cast<Bf16*>(op.copy)};
  constexpr int kPack = kPackOf<float>;
  const bool packed = are_aligned({op.weight, op.momentum, op.variance, op.gradient}) &&
                      (op.copy == nullptr || is_aligned(op.copy, sizeof(Bf16) * kPack));
  const std::int64_t packs = packed ? op.count / kPack : 0;
  start<kPack>(buffers, constants, 0, packs, queue);
  start<1>(buffers, constants, packs * kPack, op.count - packs * kPack, queue);
}

}  // namespace kvloom::cuda
