// The words of kernels/cuda/launch.h: a kernel runs on the host.
#pragma once

#include <tuple>
#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/grid.h"
#include "kernels/cuda/queue.h"
#include "tests/support/simt/capture.h"
#include "tests/support/simt/threads.h"

namespace kvloom::cuda {

template <typename... Parameters, typename... Arguments>
void launch_on(CUstream_st* stream, const char* name, void (*kernel)(Parameters...), const Grid& grid,
               Arguments&&... arguments) {
  simt::give(stream, [name, kernel, grid, given = std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)] {
    const simt::SharedMemory shared{grid.shared_bytes,
                                    asks_for_shared_memory(grid) ? simt::kMostShared : simt::kPlainShared};
    simt::run_grid(name, grid.blocks, grid.threads, shared, [&] { std::apply(kernel, given); });
  });
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, Queue& queue, Arguments&&... arguments) {
  launch_on(queue.stream(), name, kernel, grid, std::forward<Arguments>(arguments)...);
}

}  // namespace kvloom::cuda
