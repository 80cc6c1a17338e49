#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/element.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/cross_entropy.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr std::int64_t kThreadedElements = 1 << 14;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

bool holds(const auto& op, std::int32_t token) { return token >= op.first_token && token < op.first_token + op.vocab; }

// NaN is passed over.
float largest_of(const float* logits, std::int64_t count) {
  const auto larger = [](Vector a, Vector b) HWY_ATTR { return hn::Max(a, b); };
  const auto step = [&](Vector most, auto place) HWY_ATTR { return hn::Max(place.load(logits, kMinusInfinity), most); };
  return hn::GetLane(hn::MaxOfLanes(Floats(), fold(count, fill(kMinusInfinity), step, larger)));
}

void statistics_of_row(const CrossEntropyStatistics& op, std::int64_t r) {
  const float* logits = op.logits + r * op.vocab;
  const float largest = largest_of(logits, op.vocab);
  const float from = largest == kMinusInfinity ? 0.0f : largest;  // -infinity less itself is not a number
  op.maximum[r] = largest;
  op.total[r] = sum_over(op.vocab, [&](Vector sum, auto place) HWY_ATTR {
    return hn::Add(sum, exponential(hn::Sub(place.load(logits, kMinusInfinity), fill(from))));
  });
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
  for_vectors(0, op.vocab, [&](auto place) HWY_ATTR {
    const Vector weight = exponential(hn::Sub(place.load(logits), fill(largest)));
    place.store(hn::Mul(hn::Mul(weight, fill(share)), fill(op.grad_scale)), grad);
  });
  if (holds(op, target)) store(grad, target - op.first_token, (std::exp(target_below) * share - 1.0f) * op.grad_scale);
}

void statistics(const CrossEntropyStatistics& op) {
#pragma omp parallel for schedule(static) if (op.rows * op.vocab > kThreadedElements)
  for (std::int64_t r = 0; r < op.rows; ++r) statistics_of_row(op, r);
}

void loss(const CrossEntropy& op) {
  with_element_type(op.grad_dtype, "cross_entropy", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.grad_logits != nullptr && op.rows * op.vocab > kThreadedElements)
    for (std::int64_t r = 0; r < op.rows; ++r) row<T>(op, r);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(statistics);
HWY_EXPORT(loss);
}  // namespace

void run(const CrossEntropyStatistics& op) { HWY_DYNAMIC_DISPATCH(statistics)(op); }

void run(const RescaleTotals& op) {
  for (std::int64_t r = 0; r < op.rows; ++r) op.total[r] *= std::exp(op.from[r] - op.to[r]);
}

void run(const CrossEntropy& op) { HWY_DYNAMIC_DISPATCH(loss)(op); }

}  // namespace kvloom::cpu
#endif
