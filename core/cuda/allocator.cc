#include <cuda_runtime_api.h>

#include "core/cuda_allocator.h"
#include "core/cuda_stream.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/queue.h"

namespace kvloom {
namespace {

class CudaSegments final : public SegmentSource {
 public:
  explicit CudaSegments(int device) : device_(device) {}

  void* take(std::size_t bytes) override {
    const CudaDeviceScope scope(device_);
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

  std::size_t free_bytes() override {
    const CudaDeviceScope scope(device_);
    std::size_t free = 0;
    std::size_t total = 0;
    check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return free;
  }

 private:
  int device_;
};

}  // namespace

CachingCudaAllocator::CachingCudaAllocator(int device)
    : index_(device),
      source_(std::make_unique<CudaSegments>(device)),
      pool_(std::make_unique<BlockPool>(name_of(Device{Device::Kind::kCuda, device}), *source_)),
      stream_(device) {  // refuses a device that is not there
  const CudaDeviceScope scope(device);
  queue_.reset(new cuda::Queue(device, stream_.get(),
                               {.allocate = [this](std::size_t bytes) { return allocate(bytes); },
                                .release = [this](void* block, std::size_t bytes) { release(block, bytes); }}));
}

void CachingCudaAllocator::DeleteQueue::operator()(cuda::Queue* queue) const { delete queue; }

CachingCudaAllocator::~CachingCudaAllocator() = default;

void* CachingCudaAllocator::allocate(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  return pool_->allocate(bytes);
}

void CachingCudaAllocator::release(void* block, std::size_t) noexcept {
  const std::lock_guard lock(mutex_);
  pool_->release(block);
}

AllocatorStatistics CachingCudaAllocator::statistics() const {
  const std::lock_guard lock(mutex_);
  return pool_->statistics();
}

std::size_t CachingCudaAllocator::peak_taken_bytes() const {
  const std::lock_guard lock(mutex_);
  return pool_->peak_taken_bytes();
}

std::string CachingCudaAllocator::set_purpose(std::string purpose) {
  const std::lock_guard lock(mutex_);
  return pool_->set_purpose(std::move(purpose));
}

}  // namespace kvloom
