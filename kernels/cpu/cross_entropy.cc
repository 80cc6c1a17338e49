#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/vector_math.h"

namespace kvloom::cpu {
namespace {

template <typename T>
void row(const CrossEntropy& op, std::int64_t r) {
  const float* logits = op.logits + r * op.vocab;
  T* grad = op.grad_logits == nullptr ? nullptr : static_cast<T*>(op.grad_logits) + r * op.vocab;
  const std::int32_t target = op.targets[r];
  if (target == kIgnoredTarget) {
    op.loss[r] = 0;
    if (grad != nullptr) std::fill(grad, grad + op.vocab, T{});
    return;
  }
  float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
  for (std::int64_t v = 0; v < op.vocab; ++v) largest = std::max(largest, logits[v]);
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t v = 0; v < op.vocab; ++v) total += fast_exp(logits[v] - largest);
  // Differences of logits first: log_total added to a large one would lose its low bits.
  const float target_below = logits[target] - largest;
  op.loss[r] = std::log(total) - target_below;
  if (grad == nullptr) return;
  const float share = 1.0f / total;
  const float scale = op.grad_scale;
#pragma omp simd
  for (std::int64_t v = 0; v < op.vocab; ++v) store(grad, v, fast_exp(logits[v] - largest) * share * scale);
  store(grad, target, (fast_exp(target_below) * share - 1.0f) * scale);
}

}  // namespace

void run(const CrossEntropy& op) {
  with_element_type(op.grad_dtype, "cross_entropy", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * op.vocab > (1 << 14))
    for (std::int64_t r = 0; r < op.rows; ++r) row<T>(op, r);
  });
}

}  // namespace kvloom::cpu
