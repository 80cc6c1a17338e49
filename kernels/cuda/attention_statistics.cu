#include "kernels/cuda/attention_statistics.h"

#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;

// Element i of cuDNN's order is at this place of kvloom's.
__device__ std::int64_t own_place(const StatisticsShape& shape, std::int64_t i) {
  const std::int64_t length = shape.queries - shape.skipped;
  const std::int64_t query = i % length + shape.skipped;
  const std::int64_t head = i / length % shape.heads;
  const std::int64_t sequence = i / length / shape.heads;
  return (sequence * shape.queries + query) * shape.heads + head;
}

__global__ void __launch_bounds__(kBlock)
    from_cudnn(const float* statistics, float* log_sum_exp, StatisticsShape shape, std::int64_t count) {
  const std::int64_t i = block_index() * kBlock + thread_index();
  if (i < count) log_sum_exp[own_place(shape, i)] = statistics[i];
}

__global__ void __launch_bounds__(kBlock)
    to_cudnn(const float* log_sum_exp, float* statistics, StatisticsShape shape, std::int64_t count) {
  const std::int64_t i = block_index() * kBlock + thread_index();
  if (i < count) statistics[i] = log_sum_exp[own_place(shape, i)];
}

__global__ void __launch_bounds__(kBlock) mark_skipped(float* log_sum_exp, StatisticsShape shape, std::int64_t count) {
  const std::int64_t i = block_index() * kBlock + thread_index();
  const std::int64_t of_sequence = shape.skipped * shape.heads;
  if (i < count) log_sum_exp[i / of_sequence * shape.queries * shape.heads + i % of_sequence] = -INFINITY;
}

std::int64_t count_of(const StatisticsShape& shape) {
  return shape.batch * shape.heads * (shape.queries - shape.skipped);
}

}  // namespace

void statistics_from_cudnn(const float* statistics, float* log_sum_exp, const StatisticsShape& shape, Queue& queue) {
  const std::int64_t count = count_of(shape);
  launch("statistics_from_cudnn", from_cudnn, {.blocks = ceil_div(count, kBlock), .threads = kBlock}, queue, statistics,
         log_sum_exp, shape, count);
  const std::int64_t skipped = shape.batch * shape.skipped * shape.heads;
  launch("statistics_mark_skipped", mark_skipped, {.blocks = ceil_div(skipped, kBlock), .threads = kBlock}, queue,
         log_sum_exp, shape, skipped);
}

void statistics_to_cudnn(const float* log_sum_exp, float* statistics, const StatisticsShape& shape, Queue& queue) {
  const std::int64_t count = count_of(shape);
  launch("statistics_to_cudnn", to_cudnn, {.blocks = ceil_div(count, kBlock), .threads = kBlock}, queue, log_sum_exp,
         statistics, shape, count);
}

}  // namespace kvloom::cuda
