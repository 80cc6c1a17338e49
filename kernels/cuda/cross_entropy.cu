#include "kernels/cross_entropy.h"

#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 512;  // a row
constexpr float kMinusInfinity = -INFINITY;

// Of the logits seen so far: the largest, and the sum of exp(logit - largest).
struct Seen {
  float maximum = kMinusInfinity;
  float total = 0;

  template <int N>
  __device__ void include(const Floats<N>& logits) {
    float largest = maximum;
#pragma unroll
    for (int e = 0; e < N; ++e) largest = fmaxf(largest, logits.value[e]);  // passes over NaN; the sum does not
    if (largest > maximum) {
      total *= expf(maximum - largest);
      maximum = largest;
    }
    const float from = maximum == kMinusInfinity ? 0.0f : maximum;  // -infinity less itself is not a number
#pragma unroll
    for (int e = 0; e < N; ++e) total += expf(logits.value[e] - from);
  }
};

template <int N>
__global__ void __launch_bounds__(kBlock) cross_entropy_statistics(CrossEntropyStatistics op) {
  const std::int64_t row = block_index();
  const float* logits = op.logits + row * op.vocab;
  Seen seen;
  for (std::int64_t p = thread_index(); p < op.vocab / N; p += kBlock) seen.include(load_floats<N>(logits + p * N));
  const float maximum = combine_of_group<kBlock>(seen.maximum, [](float a, float b) { return fmaxf(a, b); });
  // A thread that saw nothing, or only -infinity, has no total to rescale.
  const float own = seen.maximum == kMinusInfinity ? seen.total : seen.total * expf(seen.maximum - maximum);
  const float total = combine_of_group<kBlock>(own, Plus{});
  if (thread_index() != 0) return;
  const std::int64_t target = op.targets[row] - op.first_token;
  op.maximum[row] = maximum;
  op.total[row] = total;
  op.target_logit[row] = target >= 0 && target < op.vocab ? logits[target] : 0.0f;
}

__global__ void __launch_bounds__(kBlock) rescale_totals(RescaleTotals op) {
  const std::int64_t row = block_index() * kBlock + thread_index();
  if (row < op.rows) op.total[row] *= expf(op.from[row] - op.to[row]);
}

// Loss alone: a thread a row.
__global__ void __launch_bounds__(kBlock) cross_entropy_loss(CrossEntropy op) {
  const std::int64_t row = block_index() * kBlock + thread_index();
  if (row >= op.rows) return;
  op.loss[row] =
      op.targets[row] == kIgnoredTarget ? 0.0f : logf(op.total[row]) - (op.target_logit[row] - op.maximum[row]);
}

template <typename T, int N>
__global__ void __launch_bounds__(kBlock) cross_entropy_gradient(CrossEntropy op) {
  const std::int64_t row = block_index();
  const float* logits = op.logits + row * op.vocab;
  T* grad = static_cast<T*>(op.grad_logits) + row * op.vocab;
  const bool ignored = op.targets[row] == kIgnoredTarget;
  const std::int64_t target = op.targets[row] - op.first_token;
  const float maximum = op.maximum[row];
  const float share = 1.0f / op.total[row];
  for (std::int64_t p = thread_index(); p < op.vocab / N; p += kBlock) {
    const Floats<N> from = load_floats<N>(logits + p * N);
    Pack<T, N> to;
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float weight = expf(from.value[e] - maximum) * share;
      const float slope = p * N + e == target ? weight - 1.0f : weight;
      to.value[e] = from_float<T>(ignored ? 0.0f : slope * op.grad_scale);
    }
    store_pack(grad + p * N, to);
  }
}

}  // namespace

void run(const CrossEntropyStatistics& op, Queue& queue) {
  const Grid grid{.blocks = op.rows, .threads = kBlock};
  if (op.vocab % 4 == 0 && is_aligned(op.logits)) {
    launch("cross_entropy_statistics", cross_entropy_statistics<4>, grid, queue, op);
  } else {
    launch("cross_entropy_statistics", cross_entropy_statistics<1>, grid, queue, op);
  }
}

void run(const RescaleTotals& op, Queue& queue) {
  launch("rescale_totals", rescale_totals, {.blocks = ceil_div(op.rows, kBlock), .threads = kBlock}, queue, op);
}

void run(const CrossEntropy& op, Queue& queue) {
  launch("cross_entropy_loss", cross_entropy_loss, {.blocks = ceil_div(op.rows, kBlock), .threads = kBlock}, queue, op);
  if (op.grad_logits == nullptr) return;
  with_compute_type(op.grad_dtype, "cross_entropy", [&]<typename T>() {
    with_pack<T>(op.vocab % kPackOf<T> == 0 && are_aligned({op.logits, op.grad_logits}), [&]<typename U, int N>() {
      launch("cross_entropy_gradient", cross_entropy_gradient<U, N>, {.blocks = op.rows, .threads = kBlock}, queue, op);
    });
  });
}

}  // namespace kvloom::cuda
