#include "kernels/cuda/queue.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/matmul_plans.h"

namespace kvloom::cuda {

Queue::Queue(int device, CUstream_st* stream, ScratchSource scratch)
    : device_(device), stream_(stream), scratch_(std::move(scratch)), multiprocessors_(0) {
  check_cuda(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device),
             "cudaDeviceGetAttribute");
  matmul_plans_ = std::make_unique<MatmulPlans>();
}

Queue::~Queue() = default;

void Queue::set_cudnn_attention(std::unique_ptr<CudnnAttention> attention) { cudnn_attention_ = std::move(attention); }

void Queue::enter() const { check_cuda(cudaSetDevice(device_), "cudaSetDevice"); }

}  // namespace kvloom::cuda
