// Matrix product in double precision, one element at a time.
#pragma once

#include <vector>

#include "kernels/matmul.h"

namespace kvloom::reference {

inline double element(const void* data, DType dtype, std::int64_t at) {
  return dtype == DType::kF32 ? static_cast<double>(static_cast<const float*>(data)[at])
                              : static_cast<double>(static_cast<float>(static_cast<const BFloat16*>(data)[at]));
}

// op(a) op(b), dense [rows, columns]; what c held is not looked at.
inline std::vector<double> multiply(const Matmul& op) {
  const bool turn_a = op.transpose_a == Transpose::kYes;
  const bool turn_b = op.transpose_b == Transpose::kYes;
  const std::int64_t a_stride = op.a_stride ? op.a_stride : turn_a ? op.rows : op.inner;
  const std::int64_t b_stride = op.b_stride ? op.b_stride : turn_b ? op.inner : op.columns;
  std::vector<double> c(static_cast<std::size_t>(op.rows * op.columns));
  for (std::int64_t i = 0; i < op.rows; ++i) {
    for (std::int64_t j = 0; j < op.columns; ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k < op.inner; ++k) {
        sum += element(op.a, op.operand_dtype, turn_a ? k * a_stride + i : i * a_stride + k) *
               element(op.b, op.operand_dtype, turn_b ? j * b_stride + k : k * b_stride + j);
      }
      c[static_cast<std::size_t>(i * op.columns + j)] = sum;
    }
  }
  return c;
}

}  // namespace kvloom::reference
