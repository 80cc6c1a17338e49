#include "core/allocator.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "core/out_of_memory.h"

namespace kvloom {
namespace {

constexpr std::size_t kAlignment = 64;

// Sizes are whole multiples of this.
std::size_t grain_of(std::size_t bytes, BlockSizes sizes) {
  constexpr std::size_t kClassesAnOctave = 8;
  if (sizes == BlockSizes::kExact) return kAlignment;
  return std::max(kAlignment, std::bit_floor(bytes) / kClassesAnOctave);
}

// Weights and K/V are read once a step, from more places than a processor remembers addresses of small pages: large
// ones where the system gives them on request.
void* new_block(std::size_t size) {
  constexpr std::size_t kLargePage = std::size_t{2} << 20;
  if (size < 2 * kLargePage) return std::aligned_alloc(kAlignment, size);
  void* block = nullptr;
  if (posix_memalign(&block, kLargePage, size) != 0) return nullptr;
  ::madvise(block, size / kLargePage * kLargePage, MADV_HUGEPAGE);  // may fail: it is advice
  return block;
}

// Under AddressSanitizer only a tensor's own bytes may be touched, not those that round it up and not a cached block;
// elsewhere these expand to nothing.
void forbid(void* block, std::size_t size) { ASAN_POISON_MEMORY_REGION(block, size); }

void allow(void* block, std::size_t bytes, std::size_t size) {
  ASAN_UNPOISON_MEMORY_REGION(block, bytes);
  ASAN_POISON_MEMORY_REGION(static_cast<std::byte*>(block) + bytes, size - bytes);
}

}  // namespace

std::size_t CachingCpuAllocator::rounded(std::size_t bytes) const {
  const std::size_t grain = grain_of(bytes, sizes_);
  return std::max(grain, (bytes + grain - 1) / grain * grain);
}

CachingCpuAllocator::~CachingCpuAllocator() {
  for (auto& [bytes, block] : free_) std::free(block);
}

void* CachingCpuAllocator::allocate(std::size_t bytes) {
  const std::size_t size = rounded(bytes);
  const std::lock_guard lock(mutex_);
  void* block = nullptr;
  const auto found = free_.find(size);
  if (found != free_.end()) {
    block = found->second;
    statistics_.cached_bytes -= size;
    free_.erase(found);
  } else {
    block = new_block(size);
  }
  if (block == nullptr) {
    // Cached blocks of other sizes may be all that stands in the way.
    for (auto& [unused, cached] : free_) std::free(cached);
    free_.clear();
    statistics_.cached_bytes = 0;
    block = new_block(size);
  }
  if (block == nullptr) {
    throw OutOfMemory(
        fmt::format("cpu: out of memory asking for {} bytes with {} held; lower what is worked on at once", size,
                    statistics_.held_bytes));
  }
  statistics_.held_bytes += size;
  statistics_.peak_bytes = std::max(statistics_.peak_bytes, statistics_.held_bytes);
  allow(block, bytes, size);
  return block;
}

void CachingCpuAllocator::release(void* block, std::size_t bytes) noexcept {
  const std::size_t size = rounded(bytes);
  const std::lock_guard lock(mutex_);
  statistics_.held_bytes -= size;
  statistics_.cached_bytes += size;
  forbid(block, size);
  free_.emplace(size, block);
}

AllocatorStatistics CachingCpuAllocator::statistics() const {
  const std::lock_guard lock(mutex_);
  return statistics_;
}

}  // namespace kvloom
