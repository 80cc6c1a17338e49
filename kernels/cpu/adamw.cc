#include "kernels/adamw.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/vector_math.h"

namespace kvloom::cpu {
namespace {

constexpr std::int64_t kPiece = 4096;

// The bias-corrected step written as two constants, so that the loop divides once.
struct Constants {
  float step_size;      // learning_rate / bias1
  float inverse_bias2;  // 1 / sqrt(bias2)
  float decay;          // learning_rate * weight_decay
};

void update(const AdamW& op, const Constants& constants, std::int64_t begin, std::int64_t end) {
  float* weight = op.weight;
  float* momentum = op.momentum;
  float* variance = op.variance;
  const float* gradient = op.gradient;
  const float beta1 = op.beta1;
  const float beta2 = op.beta2;
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    const float g = gradient[i] * op.gradient_scale;
    const float m = beta1 * momentum[i] + (1.0f - beta1) * g;
    const float v = beta2 * variance[i] + (1.0f - beta2) * g * g;
    momentum[i] = m;
    variance[i] = v;
    // Not weight * (1 - decay): that factor's rounding, the same for every weight, would bias a small decay.
    const float change = constants.step_size * m / (std::sqrt(v) * constants.inverse_bias2 + op.epsilon);
    weight[i] -= change + constants.decay * weight[i];
  }
  if (op.copy == nullptr) return;
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) store(op.copy, i, weight[i]);
}

}  // namespace

void run(const AdamW& op) {
  const double bias1 = 1 - std::pow(static_cast<double>(op.beta1), static_cast<double>(op.step));
  const double bias2 = 1 - std::pow(static_cast<double>(op.beta2), static_cast<double>(op.step));
  const Constants constants{static_cast<float>(static_cast<double>(op.learning_rate) / bias1),
                            static_cast<float>(1 / std::sqrt(bias2)), op.learning_rate * op.weight_decay};
  const std::int64_t pieces = (op.count + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static) if (pieces > 4)
  for (std::int64_t n = 0; n < pieces; ++n) update(op, constants, n * kPiece, std::min(op.count, (n + 1) * kPiece));
}

}  // namespace kvloom::cpu
