// The product that decoding is made of: few rows times a transposed weight, bound by reading the weight once.
#pragma once

#include "kernels/matmul.h"

namespace kvloom::cpu {

inline constexpr std::int64_t kFewRows = 8;

// c (= or +=) a b^T as `run` does it, for rows <= kFewRows, a plain and b transposed. Strides are filled in.
void multiply_few_rows(const Matmul& op);

}  // namespace kvloom::cpu
