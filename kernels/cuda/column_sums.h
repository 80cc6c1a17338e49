// Sums over the rows of a matrix, in an order that depends on its size alone: how gradients of gains and biases end.
#pragma once

#include <cstdint>

#include "kernels/cuda/queue.h"
#include "kernels/dtype.h"

namespace kvloom::cuda {

// sums[c] += sum_r data[r, c], f32. rows `stride` apart.
struct AddColumnSums {
  const float* data;
  float* sums;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t stride;
};
void add_column_sums(const AddColumnSums& op, Queue& queue);

}  // namespace kvloom::cuda
