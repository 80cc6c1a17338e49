#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/sum_parts.h"

namespace kvloom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kLargestGrid = 4096;

__global__ void __launch_bounds__(kThreads)
    sum_parts(const __nv_bfloat16* parts, __nv_bfloat16* output, std::int64_t rows, std::int64_t count) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    float sum = __bfloat162float(parts[i]);
    for (std::int64_t row = 1; row < rows; ++row) sum += __bfloat162float(parts[row * count + i]);
    output[i] = __float2bfloat16_rn(sum);
  }
}

}  // namespace

void run(const SumParts& op, cudaStream_t stream) {
  if (op.count == 0) return;
  const auto blocks = static_cast<unsigned>(std::min(kLargestGrid, (op.count + kThreads - 1) / kThreads));
  sum_parts<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<const __nv_bfloat16*>(op.parts),
                                             reinterpret_cast<__nv_bfloat16*>(op.output), op.rows, op.count);
  check_cuda(cudaGetLastError(), "sum_parts launch");
}

}  // namespace kvloom::cuda
