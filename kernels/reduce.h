// Whole-buffer reductions. Their order depends on the count only, so that equal inputs give equal bits.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvloom {

// *result = sum_i data[i]^2, summed in double. data f32.
struct SumOfSquares {
  const float* data;
  std::int64_t count;
  double* result;
};

// With change = max_i |a[i] - b[i]| and size = max_i |a[i]|: *change_result =, *size_result =. a, b of dtype, dense.
// Either is NaN when one of its terms is, so that a broken state never looks settled.
struct MaxChange {
  const void* a;
  const void* b;
  std::int64_t count;
  float* change_result;
  float* size_result;
  DType dtype = DType::kF32;
};

namespace cpu {
void run(const SumOfSquares& op);
void run(const MaxChange& op);
}  // namespace cpu

namespace cuda {
class Queue;
// The host waits for the result.
void run(const SumOfSquares& op, Queue& queue);
void run(const MaxChange& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
