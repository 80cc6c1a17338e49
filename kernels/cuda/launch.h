// How a .cu file starts its kernels.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/grid.h"
#include "kernels/cuda/queue.h"

namespace kvloom::cuda {

// Gives the kernel to a stream of the thread's device; nothing to do without blocks. Throws Error with `name` when CUDA
// refuses.
template <typename... Parameters, typename... Arguments>
void launch_on(cudaStream_t stream, const char* name, void (*kernel)(Parameters...), const Grid& grid,
               Arguments&&... arguments) {
  if (grid.blocks == 0) return;
  if (asks_for_shared_memory(grid)) {
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes)),
        name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

// The same to the queue's stream, on its device.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, Queue& queue, Arguments&&... arguments) {
  queue.enter();
  launch_on(queue.stream(), name, kernel, grid, std::forward<Arguments>(arguments)...);
}

}  // namespace kvloom::cuda
