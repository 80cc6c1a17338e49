#include <cuda_runtime_api.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/matmul_plans.h"

namespace kvloom::cuda {

void run(const Matmul& op, Queue& queue) {
  if (op.rows == 0 || op.columns == 0) return;
  queue.enter();
  if (op.inner > 0) return queue.matmul_plans().run(op, queue);
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

}  // namespace kvloom::cuda
