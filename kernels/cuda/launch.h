// How a .cu file starts its kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/check.h"
#include "kernels/cuda/queue.h"

namespace kvloom::cuda {

struct Grid {
  std::int64_t blocks;
  int threads;  // of a block
  std::size_t shared_bytes = 0;
};

// Gives the kernel to the queue's stream; nothing to do without blocks. Throws Error with `name` when CUDA refuses.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, Queue& queue, Arguments&&... arguments) {
  if (grid.blocks == 0) return;
  queue.enter();
  constexpr std::size_t kPlainLimit = 48 << 10;  // beyond this a kernel has to ask
  if (grid.shared_bytes > kPlainLimit) {
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes)),
        name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = queue.stream();
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

}  // namespace kvloom::cuda
