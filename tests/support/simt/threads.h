// Blocks of threads on one host thread: each thread of a block is a coroutine with a stack of its own that gives way
// only where threads of a GPU wait for one another, at a barrier or an exchange within a warp. In which order the
// threads run in between, and whether a warp runs ahead of the others, is drawn anew for every block, so that a kernel
// that lacks a barrier gives other results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace kvloom::simt {

inline constexpr int kWarp = 32;
inline constexpr std::size_t kLaneBytes = 64;  // the most that a lane brings to an exchange

// Of the running coroutine.
int thread_index();
int block_size();
std::int64_t block_index();
std::int64_t block_count();
std::byte* dynamic_shared();

void block_barrier();
bool any_of_block(bool yes);

// Copies of the running thread that it does not wait for at once, in groups: `from` null means zeros. In half of the
// blocks they are done at once, in the others only when the thread waits for them, so that a kernel that waits for too
// little, or fills again what others still read, gives other results.
void copy_async(void* to, const void* from, std::size_t bytes);
void end_copy_group();
void await_copy_groups(int most_under_way);

// All 32 lanes bring `bytes` bytes; returns what lane i brought at [i], readable until the exchange after the next.
using Lanes = std::byte (*)[kLaneBytes];
Lanes exchange(const void* own, std::size_t bytes);

inline constexpr std::size_t kPlainShared = 48 << 10;  // what a GPU gives a block unasked
inline constexpr std::size_t kMostShared = 227 << 10;  // what an H100 gives one whose kernel asks

struct SharedMemory {
  std::size_t bytes;  // beside what the kernel declares, which is not known here
  std::size_t limit;  // of both together
};

// Runs the grid, block by block, to its end. Ends the process with a message where threads of a block would wait for
// ever, a lane is missing from an exchange, or a GPU would refuse the grid.
void run_grid(const char* name, std::int64_t blocks, int threads, SharedMemory shared,
              const std::function<void()>& thread);

}  // namespace kvloom::simt
