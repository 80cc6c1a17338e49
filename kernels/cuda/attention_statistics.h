// The softmax statistics of attention in kvloom's order and in cuDNN's.
#pragma once

#include <cstdint>

#include "kernels/cuda/queue.h"

namespace kvloom::cuda {

// kvloom's: f32 [batch, queries, heads]; cuDNN's: f32 [batch, heads, queries - skipped], without the first `skipped`
// queries, which see nothing.
struct StatisticsShape {
  std::int64_t batch;
  std::int64_t queries;
  std::int64_t heads;
  std::int64_t skipped;
};
// log_sum_exp =, -infinity for skipped queries.
void statistics_from_cudnn(const float* statistics, float* log_sum_exp, const StatisticsShape& shape, Queue& queue);
// statistics =.
void statistics_to_cudnn(const float* log_sum_exp, float* statistics, const StatisticsShape& shape, Queue& queue);

}  // namespace kvloom::cuda
