#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "core/cuda_allocator.h"
#include "core/cuda_stream.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/queue.h"

namespace kvloom {
namespace {

// Memory may be taken while this thread records a graph: that gives no stream any work.
class TakingWhileRecording {
 public:
  TakingWhileRecording() { exchange(); }
  ~TakingWhileRecording() { exchange(); }
  TakingWhileRecording(const TakingWhileRecording&) = delete;
  TakingWhileRecording& operator=(const TakingWhileRecording&) = delete;

 private:
  void exchange() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

class CudaSegments final : public SegmentSource {
 public:
  explicit CudaSegments(int device) : device_(device) {}

  void* take(std::size_t bytes) override {
    enter_cuda_device(device_);
    const TakingWhileRecording taking;
    void* segment = nullptr;
    const cudaError_t code = cudaMalloc(&segment, bytes);
    if (code == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return nullptr;
    }
    check_cuda(code, "cudaMalloc");
    return segment;
  }

  void give_back(void* segment) noexcept override { cudaFree(segment); }

  std::size_t free_bytes() override { return free_device_bytes(device_); }

 private:
  int device_;
};

// What an arena grows by. Where there is no more, the allocator's other free segments stand in for it; but not while a
// graph is being recorded, since to free memory waits for the device.
class ArenaSegments final : public SegmentSource {
 public:
  ArenaSegments(SegmentSource& source, BlockPool& others, const CudaStream& stream)
      : source_(source), others_(others), stream_(stream) {}

  void* take(std::size_t bytes) override {
    void* segment = source_.take(bytes);
    if (segment != nullptr || stream_.is_recording()) return segment;
    others_.trim();
    return source_.take(bytes);
  }
  void give_back(void* segment) noexcept override { source_.give_back(segment); }
  std::size_t free_bytes() override { return source_.free_bytes(); }

 private:
  SegmentSource& source_;
  BlockPool& others_;
  const CudaStream& stream_;
};

}  // namespace

struct CachingCudaAllocator::Arena {
  Arena(const std::string& name, SegmentSource& source, BlockPool& others, const CudaStream& stream)
      : segments(source, others, stream), pool(name, segments, FreeSegments::kKept) {}

  ArenaSegments segments;
  BlockPool pool;
  bool open = true;
};

CachingCudaAllocator::CachingCudaAllocator(int device)
    : index_(device),
      source_(std::make_unique<CudaSegments>(device)),
      pool_(std::make_unique<BlockPool>(name_of(Device{Device::Kind::kCuda, device}), *source_)),
      stream_(device) {  // refuses a device that is not there
  enter_cuda_device(device);
  queue_.reset(new cuda::Queue(device, stream_.get(),
                               {.allocate = [this](std::size_t bytes) { return allocate(bytes); },
                                .release = [this](void* block, std::size_t bytes) { release(block, bytes); }}));
}

void CachingCudaAllocator::DeleteQueue::operator()(cuda::Queue* queue) const { delete queue; }

CachingCudaAllocator::~CachingCudaAllocator() = default;

void* CachingCudaAllocator::allocate(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  BlockPool& pool = arena_in_use_ == nullptr ? *pool_ : arena_in_use_->pool;
  void* block = pool.allocate(bytes);
  count_peaks();
  return block;
}

void CachingCudaAllocator::release(void* block, std::size_t) noexcept {
  const std::lock_guard lock(mutex_);
  const auto owner = std::ranges::find_if(arenas_, [&](const Arena& arena) { return arena.pool.has(block); });
  if (owner == arenas_.end()) return pool_->release(block);
  owner->pool.release(block);
  drop_if_unused(*owner);
}

void CachingCudaAllocator::count_peaks() {
  std::size_t held = pool_->statistics().held_bytes;
  std::size_t taken = pool_->taken_bytes();
  for (const Arena& arena : arenas_) {
    held += arena.pool.statistics().held_bytes;
    taken += arena.pool.taken_bytes();
  }
  peak_held_bytes_ = std::max(peak_held_bytes_, held);
  peak_taken_bytes_ = std::max(peak_taken_bytes_, taken);
}

AllocatorStatistics CachingCudaAllocator::statistics() const {
  const std::lock_guard lock(mutex_);
  AllocatorStatistics all = pool_->statistics();
  all.peak_bytes = peak_held_bytes_;
  for (const Arena& arena : arenas_) {
    all.held_bytes += arena.pool.statistics().held_bytes;
    all.cached_bytes += arena.pool.statistics().cached_bytes;
  }
  return all;
}

std::size_t CachingCudaAllocator::peak_taken_bytes() const {
  const std::lock_guard lock(mutex_);
  return peak_taken_bytes_;
}

void CachingCudaAllocator::trim() {
  const std::lock_guard lock(mutex_);
  pool_->trim();
}

std::string CachingCudaAllocator::set_purpose(std::string purpose) {
  const std::lock_guard lock(mutex_);
  return pool_->set_purpose(std::move(purpose));
}

CachingCudaAllocator::Arena& CachingCudaAllocator::open_arena() {
  const std::lock_guard lock(mutex_);
  return arenas_.emplace_back(name_of(device()) + ", memory set apart for graphs", *source_, *pool_, stream_);
}

void CachingCudaAllocator::close_arena(Arena& arena) noexcept {
  const std::lock_guard lock(mutex_);
  arena.open = false;
  drop_if_unused(arena);
}

CachingCudaAllocator::Arena* CachingCudaAllocator::use_arena(Arena* arena) {
  const std::lock_guard lock(mutex_);
  return std::exchange(arena_in_use_, arena);
}

void CachingCudaAllocator::drop_if_unused(Arena& arena) noexcept {
  if (arena.open || arena.pool.statistics().held_bytes > 0) return;
  arenas_.remove_if([&](const Arena& other) { return &other == &arena; });
}

CudaArena::CudaArena(CachingCudaAllocator& allocator) : allocator_(allocator), arena_(allocator.open_arena()) {}

CudaArena::~CudaArena() { allocator_.close_arena(arena_); }

CudaArena::Use::Use(const CudaArena& arena)
    : allocator_(arena.allocator_), former_(allocator_.use_arena(&arena.arena_)) {}

CudaArena::Use::~Use() { allocator_.use_arena(former_); }

}  // namespace kvloom
