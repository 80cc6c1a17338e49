// Products with a handful of rows, as decode makes them: the weights are read once, at the speed of memory.
#pragma once

#include "kernels/matmul.h"

namespace kvloom::cpu {

inline constexpr std::int64_t kFewRows = 8;

// Matmul with rows <= kFewRows, a plain and b transposed; strides are given.
void multiply_few_rows(const Matmul& op, std::int64_t a_stride, std::int64_t b_stride, std::int64_t c_stride);

}  // namespace kvloom::cpu
