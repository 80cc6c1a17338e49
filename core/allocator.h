// Memory of one device. Tensors hold what they got from here and give it back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "core/device.h"

namespace kvloom {

struct AllocatorStatistics {
  std::size_t held_bytes = 0;    // by tensors now
  std::size_t peak_bytes = 0;    // the most that tensors held at once
  std::size_t cached_bytes = 0;  // freed by tensors, kept for the next one
};

// Thread-safe. Blocks are aligned to 64 bytes and not initialised.
class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual Device device() const = 0;
  // Throws Error naming the size, what is held and what to lower.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* block, std::size_t bytes) noexcept = 0;
  virtual AllocatorStatistics statistics() const = 0;
  // Waits until the device has done what it was given to do with this allocator's tensors.
  virtual void synchronize() const {}
};

// How sizes are rounded up before a block is looked for.
enum class BlockSizes : std::uint8_t {
  kExact,    // to 64 bytes
  kClasses,  // to one of eight sizes an octave: what asks for other sizes every time finds freed blocks all the same
};

// Keeps freed blocks by size: a training step asks for the same sizes every time, and fresh pages cost a fault each.
// The steps of an engine have other rows each; without classes what is kept would grow for as long as it serves.
class CachingCpuAllocator final : public Allocator {
 public:
  explicit CachingCpuAllocator(BlockSizes sizes = BlockSizes::kExact) : sizes_(sizes) {}
  ~CachingCpuAllocator() override;
  CachingCpuAllocator(const CachingCpuAllocator&) = delete;
  CachingCpuAllocator& operator=(const CachingCpuAllocator&) = delete;

  Device device() const override { return {}; }
  void* allocate(std::size_t bytes) override;
  void release(void* block, std::size_t bytes) noexcept override;
  AllocatorStatistics statistics() const override;

 private:
  std::size_t rounded(std::size_t bytes) const;

  BlockSizes sizes_;
  mutable std::mutex mutex_;
  std::multimap<std::size_t, void*> free_;  // by rounded size
  AllocatorStatistics statistics_;
};

}  // namespace kvloom
