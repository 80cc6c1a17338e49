#include "kernels/transfer.h"

#include <cuda_runtime_api.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/queue.h"

namespace kvloom::cuda {
namespace {

bool is_of_device(const void* data) {
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, data), "cudaPointerGetAttributes");
  return attributes.type == cudaMemoryTypeDevice;
}

}  // namespace

void run(const CopyBytes& op, Queue& queue) {
  queue.enter();
  check_cuda(cudaMemcpyAsync(op.to, op.from, op.bytes, cudaMemcpyDefault, queue.stream()), "cudaMemcpyAsync");
  if (is_of_device(op.to) && is_of_device(op.from)) return;
  check_cuda(cudaStreamSynchronize(queue.stream()), "cudaStreamSynchronize");
}

void run(const FillZero& op, Queue& queue) {
  queue.enter();
  check_cuda(cudaMemsetAsync(op.data, 0, op.bytes, queue.stream()), "cudaMemsetAsync");
}

}  // namespace kvloom::cuda
