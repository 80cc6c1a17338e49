// Memory of one GPU.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <string>

#include "core/allocator.h"
#include "core/block_pool.h"
#include "core/cuda_stream.h"

namespace kvloom {

// Keeps freed memory: cudaMalloc and cudaFree make the host wait. A freed block may be handed out at once, while the
// device still works on it; so all tensors of an allocator belong to the work of one stream, which is the allocator's
// own, and a stream that lends them (a communicator's) has that one wait for it before they go. A block that is asked
// for while a CudaArena is in use comes from that, and goes back there.
class CachingCudaAllocator final : public Allocator {
 public:
  // Throws Error naming KVLOOM_CUDA when the build has no CUDA, or the reason when there is no such device.
  explicit CachingCudaAllocator(int device);
  ~CachingCudaAllocator() override;

  // With the queue that operations on this allocator's tensors go to.
  Device device() const override { return {Device::Kind::kCuda, index_, queue_.get()}; }
  const CudaStream& stream() const { return stream_; }
  void synchronize() const override { stream_.synchronize(); }
  void* allocate(std::size_t bytes) override;
  void release(void* block, std::size_t bytes) noexcept override;
  AllocatorStatistics statistics() const override;
  std::size_t peak_taken_bytes() const;  // the most that was taken from the device at once, held and cached

  // Gives back to the device what is held free, but for arenas' memory. Waits for what the device does with it.
  void trim();

  // What blocks are for from now on, for the message when memory runs out; returns what it was before.
  std::string set_purpose(std::string purpose);

 private:
  friend class CudaArena;
  struct Arena;
  struct DeleteQueue {
    void operator()(cuda::Queue* queue) const;
  };

  Arena& open_arena();
  void close_arena(Arena& arena) noexcept;
  Arena* use_arena(Arena* arena);  // null: none; returns the one before
  void drop_if_unused(Arena& arena) noexcept;
  void count_peaks();

  int index_;
  mutable std::mutex mutex_;
  std::unique_ptr<SegmentSource> source_;
  std::unique_ptr<BlockPool> pool_;
  std::list<Arena> arenas_;
  Arena* arena_in_use_ = nullptr;
  std::size_t peak_held_bytes_ = 0;
  std::size_t peak_taken_bytes_ = 0;
  CudaStream stream_;  // ends its work before the memory goes
  std::unique_ptr<cuda::Queue, DeleteQueue> queue_;
};

// Memory that an allocator sets apart, for work that comes again at the same addresses (CudaGraph): nobody else is
// handed any of it, free or not. Its segments go back when the arena has gone and its last block has been released.
class CudaArena {
 public:
  // The allocator outlives it.
  explicit CudaArena(CachingCudaAllocator& allocator);
  ~CudaArena();
  CudaArena(const CudaArena&) = delete;
  CudaArena& operator=(const CudaArena&) = delete;

  // While one lives, all that is asked of the allocator comes from the arena. By one thread at a time.
  class Use {
   public:
    explicit Use(const CudaArena& arena);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    CachingCudaAllocator& allocator_;
    CachingCudaAllocator::Arena* former_;
  };

 private:
  CachingCudaAllocator& allocator_;
  CachingCudaAllocator::Arena& arena_;
};

}  // namespace kvloom
