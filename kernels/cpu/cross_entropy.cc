#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/vector_math.h"

namespace kvloom::cpu {
namespace {

constexpr std::int64_t kThreadedElements = 1 << 14;

bool holds(const auto& op, std::int32_t token) { return token >= op.first_token && token < op.first_token + op.vocab; }

void statistics_of_row(const CrossEntropyStatistics& op, std::int64_t r) {
  const float* logits = op.logits + r * op.vocab;
  float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
  for (std::int64_t v = 0; v < op.vocab; ++v) largest = std::max(largest, logits[v]);
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t v = 0; v < op.vocab; ++v) total += fast_exp(logits[v] - largest);
  op.maximum[r] = largest;
  op.total[r] = total;
  op.target_logit[r] = holds(op, op.targets[r]) ? logits[op.targets[r] - op.first_token] : 0.0f;
}

template <typename T>
void row(const CrossEntropy& op, std::int64_t r) {
  T* grad = op.grad_logits == nullptr ? nullptr : static_cast<T*>(op.grad_logits) + r * op.vocab;
  const std::int32_t target = op.targets[r];
  if (target == kIgnoredTarget) {
    op.loss[r] = 0;
    if (grad != nullptr) std::fill(grad, grad + op.vocab, T{});
    return;
  }
  const float largest = op.maximum[r];
  // Differences of logits first: log(total) added to a large one would lose its low bits.
  const float target_below = op.target_logit[r] - largest;
  op.loss[r] = std::log(op.total[r]) - target_below;
  if (grad == nullptr) return;
  const float* logits = op.logits + r * op.vocab;
  const float share = 1.0f / op.total[r];
  const float scale = op.grad_scale;
#pragma omp simd
  for (std::int64_t v = 0; v < op.vocab; ++v) store(grad, v, fast_exp(logits[v] - largest) * share * scale);
  if (holds(op, target)) store(grad, target - op.first_token, (fast_exp(target_below) * share - 1.0f) * scale);
}

}  // namespace

void run(const CrossEntropyStatistics& op) {
#pragma omp parallel for schedule(static) if (op.rows * op.vocab > kThreadedElements)
  for (std::int64_t r = 0; r < op.rows; ++r) statistics_of_row(op, r);
}

void run(const RescaleTotals& op) {
  for (std::int64_t r = 0; r < op.rows; ++r) op.total[r] *= std::exp(op.from[r] - op.to[r]);
}

void run(const CrossEntropy& op) {
  with_element_type(op.grad_dtype, "cross_entropy", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.grad_logits != nullptr && op.rows * op.vocab > kThreadedElements)
    for (std::int64_t r = 0; r < op.rows; ++r) row<T>(op, r);
  });
}

}  // namespace kvloom::cpu
