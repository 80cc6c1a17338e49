// Memory of one GPU.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "core/allocator.h"
#include "core/block_pool.h"

namespace kvloom {

// Keeps freed memory: cudaMalloc and cudaFree make the host wait. A freed block may be handed out at once, while the
// device still works on it; so all tensors of an allocator belong to the work of one stream, and a stream that lends
// them (a communicator's) has that one wait for it before they go.
class CachingCudaAllocator final : public Allocator {
 public:
  // Throws Error naming KVLOOM_CUDA when the build has no CUDA, or the reason when there is no such device.
  explicit CachingCudaAllocator(int device);
  ~CachingCudaAllocator() override;

  Device device() const override { return {Device::Kind::kCuda, index_}; }
  void* allocate(std::size_t bytes) override;
  void release(void* block, std::size_t bytes) noexcept override;
  AllocatorStatistics statistics() const override;
  std::size_t peak_taken_bytes() const;  // the most that was taken from the device at once, held and cached

  // What blocks are for from now on, for the message when memory runs out; returns what it was before.
  std::string set_purpose(std::string purpose);

 private:
  int index_;
  mutable std::mutex mutex_;
  std::unique_ptr<SegmentSource> source_;
  std::unique_ptr<BlockPool> pool_;
};

}  // namespace kvloom
