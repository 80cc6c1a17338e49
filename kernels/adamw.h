// AdamW with decoupled weight decay, Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvloom {

// With g = gradient[i] * gradient_scale, on f32 buffers of `count` elements:
//   momentum = beta1 * momentum + (1 - beta1) * g
//   variance = beta2 * variance + (1 - beta2) * g^2
//   weight  -= learning_rate * (momentum / bias1 / (sqrt(variance / bias2) + epsilon) + weight_decay * weight)
// with bias1 = 1 - beta1^step, bias2 = 1 - beta2^step, step counted from 1.
// weight, momentum, variance are updated in place; copy (bf16, may be null) = weight rounded.
struct AdamW {
  float* weight;
  float* momentum;
  float* variance;
  const float* gradient;
  BFloat16* copy;
  std::int64_t count;
  std::int64_t step;
  float learning_rate;
  float beta1;
  float beta2;
  float epsilon;
  float weight_decay;
  float gradient_scale;
};

namespace cpu {
void run(const AdamW& op);
}  // namespace cpu

namespace cuda {
class Queue;
void run(const AdamW& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
