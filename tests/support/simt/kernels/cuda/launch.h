// The words of kernels/cuda/launch.h: a kernel runs on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>

#include "kernels/cuda/check.h"
#include "kernels/cuda/queue.h"
#include "tests/support/simt/capture.h"
#include "tests/support/simt/threads.h"

namespace kvloom::cuda {

struct Grid {
  std::int64_t blocks;
  int threads;
  std::size_t shared_bytes = 0;
};

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, Queue& queue, Arguments&&... arguments) {
  simt::give(queue.stream(),
             [name, kernel, grid, given = std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)] {
               simt::run_grid(name, grid.blocks, grid.threads, grid.shared_bytes, [&] { std::apply(kernel, given); });
             });
}

}  // namespace kvloom::cuda
