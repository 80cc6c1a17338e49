#include <cuda_runtime_api.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/matmul_plans.h"

namespace kvloom::cuda {

void run(const Matmul& op, Queue& queue) {
  if (op.rows == 0 || op.columns == 0) return;
  queue.enter();
  if (op.inner > 0) return queue.matmul_plans().run(op, queue);
  if (op.output == Output::kAccumulate) return;
  const std::size_t width = size_of(op.output_dtype);
  const auto stride = static_cast<std::size_t>(op.c_stride == 0 ? op.columns : op.c_stride);
  check_cuda(cudaMemset2DAsync(op.c, stride * width, 0, static_cast<std::size_t>(op.columns) * width,
                               static_cast<std::size_t>(op.rows), queue.stream()),
             "cudaMemset2DAsync");
}

}  // namespace kvloom::cuda
