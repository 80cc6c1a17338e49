#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/check.h"
#include "kernels/cuda/matmul_plans.h"
#include "kernels/elementwise.h"

namespace kvloom::cuda {
namespace {

// What a sum of nothing leaves.
void multiply_empty(const Matmul& op, Queue& queue) {
  const std::size_t width = size_of(op.output_dtype);
  const auto stride = static_cast<std::size_t>(op.c_stride == 0 ? op.columns : op.c_stride);
  if (op.output == Output::kAccumulate) {
    if (op.addend == nullptr) return;
    check_cuda(
        cudaMemcpy2DAsync(op.c, stride * width, op.addend, stride * width, static_cast<std::size_t>(op.columns) * width,
                          static_cast<std::size_t>(op.rows), cudaMemcpyDeviceToDevice, queue.stream()),
        "cudaMemcpy2DAsync");
    return;
  }
  check_cuda(cudaMemset2DAsync(op.c, stride * width, 0, static_cast<std::size_t>(op.columns) * width,
                               static_cast<std::size_t>(op.rows), queue.stream()),
             "cudaMemset2DAsync");
}

void multiply(const Matmul& op, Queue& queue) {
  if (op.inner == 0) return multiply_empty(op, queue);
  if (!queue.matmul_plans().run(op, queue)) fail("matmul: a plain product was not taken");
}

// cuBLASLt's epilogue may read a bias 16 bytes at a time, wherever it lies, and wants it of the result's type
// (cublasLt.h, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE); ours are f32.
bool bias_may_go_along(const Matmul& op) {
  constexpr std::uintptr_t kAlignment = 16;
  return op.bias != nullptr && op.inner > 0 && op.output_dtype == DType::kF32 &&
         reinterpret_cast<std::uintptr_t>(op.bias) % kAlignment == 0;
}

// The product, with its bias where there is one.
void multiply_with_bias(const Matmul& op, Queue& queue) {
  if (bias_may_go_along(op) && queue.matmul_plans().run(op, queue)) return;
  Matmul product = op;
  product.bias = nullptr;
  multiply(product, queue);
  if (op.bias == nullptr) return;
  run(BiasForward{op.c, op.bias, op.rows, op.columns, op.c_stride == 0 ? op.columns : op.c_stride, op.output_dtype},
      queue);
}

}  // namespace

void choose_matmul_precision(Queue& queue, MatmulPrecision precision) { queue.set_matmul_precision(precision); }

void run(const Matmul& op, Queue& queue) {
  if (op.rows == 0 || op.columns == 0) return;
  queue.enter();
  Matmul product = op;
  product.row_sums = nullptr;
  multiply_with_bias(product, queue);
  if (op.row_sums != nullptr) {
    run(BiasBackward{op.a, op.row_sums, op.inner, op.rows, op.a_stride == 0 ? op.rows : op.a_stride, op.operand_dtype},
        queue);
  }
}

}  // namespace kvloom::cuda
