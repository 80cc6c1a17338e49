#include "kernels/matmul.h"

#include <cstring>

#include "kernels/cpu/matmul_few_rows.h"
#include "kernels/cpu/matmul_onednn.h"
#include "kernels/elementwise.h"

namespace kvloom::cpu {
namespace {

Matmul with_strides(Matmul op) {
  if (op.a_stride == 0) op.a_stride = op.transpose_a == Transpose::kYes ? op.rows : op.inner;
  if (op.b_stride == 0) op.b_stride = op.transpose_b == Transpose::kYes ? op.inner : op.columns;
  if (op.c_stride == 0) op.c_stride = op.columns;
  return op;
}

void copy_addend(const Matmul& op) {
  const std::size_t size = size_of(op.output_dtype);
  for (std::int64_t row = 0; row < op.rows; ++row) {
    const auto at = static_cast<std::size_t>(row * op.c_stride) * size;
    std::memcpy(static_cast<char*>(op.c) + at, static_cast<const char*>(op.addend) + at,
                static_cast<std::size_t>(op.columns) * size);
  }
}

// What a sum of nothing leaves.
void multiply_empty(const Matmul& op) {
  if (op.output == Output::kAccumulate) return;
  const std::size_t size = size_of(op.output_dtype);
  for (std::int64_t row = 0; row < op.rows; ++row) {
    std::memset(static_cast<char*>(op.c) + static_cast<std::size_t>(row * op.c_stride) * size, 0,
                static_cast<std::size_t>(op.columns) * size);
  }
}

void multiply(const Matmul& op) {
  if (op.output == Output::kAccumulate && op.addend != nullptr) copy_addend(op);
  if (op.inner == 0) return multiply_empty(op);
  if (op.rows <= kFewRows && op.transpose_a == Transpose::kNo && op.transpose_b == Transpose::kYes) {
    return multiply_few_rows(op);
  }
  multiply_with_onednn(op);
}

}  // namespace

void run(const Matmul& dense_or_strided) {
  const Matmul op = with_strides(dense_or_strided);
  if (op.rows == 0 || op.columns == 0) return;
  multiply(op);
  if (op.bias != nullptr) run(BiasForward{op.c, op.bias, op.rows, op.columns, op.c_stride, op.output_dtype});
  if (op.row_sums != nullptr) run(BiasBackward{op.a, op.row_sums, op.inner, op.rows, op.a_stride, op.operand_dtype});
}

}  // namespace kvloom::cpu
