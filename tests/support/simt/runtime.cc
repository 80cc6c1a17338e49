// The calls of CUDA's runtime that kvloom makes, for one device of the host's memory. Work goes to streams (streams.h)
// or is recorded (capture.h).
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "tests/support/simt/capture.h"
#include "tests/support/simt/capture_state.h"
#include "tests/support/simt/device_memory.h"
#include "tests/support/simt/streams.h"
#include "tests/support/simt/threads.h"

namespace {

using kvloom::simt::DeviceMemoryAccess;
using kvloom::simt::give;
using kvloom::simt::refuse_host_memory;
using kvloom::simt::refuse_while_recording;
using kvloom::simt::Refused;

// Memory that CUDA would free when the device has come to the end of its work.
std::mutex freed_mutex;
std::vector<void*> freed;

void free_what_nobody_uses() {
  const std::lock_guard lock(freed_mutex);
  if (!kvloom::simt::all_idle()) return;
  for (void* block : freed) kvloom::simt::give_back_device_memory(block);
  freed.clear();
}

// Of host memory, only what CUDA has allocated is copied in the stream's own time.
std::mutex pinned_mutex;
std::map<const std::byte*, std::size_t> pinned;

bool is_pinned(const void* address) {
  const std::lock_guard lock(pinned_mutex);
  const auto* at = static_cast<const std::byte*>(address);
  auto block = pinned.upper_bound(at);
  if (block == pinned.begin()) return false;
  --block;
  return at < block->first + block->second;
}

bool is_plain_host_memory(const void* address) {
  return !kvloom::simt::is_device_address(address) && !is_pinned(address);
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  constexpr int kMultiprocessors = 12;  // few blocks are many, and one may yet be split as often as ever
  const bool is_shared = which == cudaDevAttrMaxSharedMemoryPerBlockOptin;
  *value = is_shared ? static_cast<int>(kvloom::simt::kMostShared) : kMultiprocessors;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "one that stands for a GPU");
  properties->sharedMemPerBlockOptin = kvloom::simt::kMostShared;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "refused by the device that stands for a GPU"; }
const char* cudaGetErrorName(cudaError_t) { return "simt"; }

cudaError_t cudaMalloc(void** block, std::size_t bytes) {
  if (const cudaError_t refused = refuse_while_recording(Refused::kUnlessRelaxed); refused != cudaSuccess) {
    return refused;
  }
  *block = kvloom::simt::take_device_memory(bytes);
  return *block == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFree(void* block) {
  if (const cudaError_t refused = refuse_while_recording(Refused::kAlways); refused != cudaSuccess) return refused;
  if (block != nullptr) {
    const std::lock_guard lock(freed_mutex);
    freed.push_back(block);
  }
  free_what_nobody_uses();
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** block, std::size_t bytes, cudaStream_t) { return cudaMalloc(block, bytes); }
cudaError_t cudaFreeAsync(void* block, cudaStream_t stream) {
  // Another stream may have it next: who still reads it finds out.
  give(stream, [block] {
    const DeviceMemoryAccess access;
    kvloom::simt::spoil_device_memory(block);
  });
  return cudaFree(block);
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = nullptr;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = *total = std::size_t{1} << 32;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** block, std::size_t bytes, unsigned) {
  if (const cudaError_t refused = refuse_while_recording(Refused::kUnlessRelaxed); refused != cudaSuccess) {
    return refused;
  }
  *block = std::malloc(bytes);
  if (*block == nullptr) return cudaErrorMemoryAllocation;
  const std::lock_guard lock(pinned_mutex);
  pinned[static_cast<std::byte*>(*block)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* block) {
  if (const cudaError_t refused = refuse_while_recording(Refused::kAlways); refused != cudaSuccess) return refused;
  {
    const std::lock_guard lock(pinned_mutex);
    pinned.erase(static_cast<std::byte*>(block));
  }
  std::free(block);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  *attributes = {};
  attributes->type = kvloom::simt::is_device_address(address) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (const cudaError_t refused = refuse_host_memory(stream, to, from); refused != cudaSuccess) return refused;
  std::vector<std::byte> staged;
  if (is_plain_host_memory(from))
    staged.assign(static_cast<const std::byte*>(from), static_cast<const std::byte*>(from) + bytes);
  give(stream, [=, staged = std::move(staged)] {
    const DeviceMemoryAccess access;
    std::memmove(to, staged.empty() ? from : staged.data(), bytes);
  });
  if (is_plain_host_memory(to)) kvloom::simt::drain(stream);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  give(stream, [=] {
    const DeviceMemoryAccess access;
    std::memset(to, value, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemset2DAsync(void* to, std::size_t pitch, int value, std::size_t width, std::size_t height,
                              cudaStream_t stream) {
  give(stream, [=] {
    const DeviceMemoryAccess access;
    for (std::size_t row = 0; row < height; ++row) std::memset(static_cast<char*>(to) + row * pitch, value, width);
  });
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind, cudaStream_t stream) {
  if (const cudaError_t refused = refuse_host_memory(stream, to, from); refused != cudaSuccess) return refused;
  const bool waits = is_plain_host_memory(to) || is_plain_host_memory(from);
  give(stream, [=] {
    const DeviceMemoryAccess access;
    for (std::size_t row = 0; row < height; ++row) {
      std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    }
  });
  if (waits) kvloom::simt::drain(stream);
  return cudaSuccess;
}

}  // extern "C"
