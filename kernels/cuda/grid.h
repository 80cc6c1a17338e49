// What a kernel is started on, and whether CUDA has to be asked for the shared memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvloom::cuda {

struct Grid {
  std::int64_t blocks;
  int threads;  // of a block
  std::size_t shared_bytes = 0;
};

// A block gets 48 KiB unless its kernel asks for more, and what the kernel declares is part of them: 8 KiB are left for
// it. To ask without need does no harm.
inline bool asks_for_shared_memory(const Grid& grid) { return grid.shared_bytes > 40 << 10; }

}  // namespace kvloom::cuda
