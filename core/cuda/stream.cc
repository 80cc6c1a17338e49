#include <cuda_runtime_api.h>

#include "core/cuda_stream.h"
#include "core/out_of_memory.h"
#include "kernels/cuda/check.h"

namespace kvloom {

CudaPresence cuda_presence() {
  CudaPresence presence;
  const cudaError_t code = cudaGetDeviceCount(&presence.devices);
  if (code == cudaSuccess && presence.devices > 0) return presence;
  cudaGetLastError();
  presence.devices = 0;
  presence.reason = std::string("no GPU: ") + cudaGetErrorString(code == cudaSuccess ? cudaErrorNoDevice : code);
  return presence;
}

GpuTraits gpu_traits(int device) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return {properties.name, properties.sharedMemPerBlockOptin};
}

void enter_cuda_device(int device) {
  int current = 0;
  check_cuda(cudaGetDevice(&current), "cudaGetDevice");
  if (current != device) check_cuda(cudaSetDevice(device), "cudaSetDevice");
}

std::size_t free_device_bytes(int device) {
  enter_cuda_device(device);
  std::size_t free = 0;
  std::size_t total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

CudaEvent::CudaEvent(int device) {
  enter_cuda_device(device);
  check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
}

CudaEvent::~CudaEvent() { cudaEventDestroy(event_); }

void CudaEvent::record(const CudaStream& stream) {
  enter_cuda_device(stream.device());
  check_cuda(cudaEventRecord(event_, stream.get()), "cudaEventRecord");
}

bool CudaEvent::reached() const {
  const cudaError_t code = cudaEventQuery(event_);
  if (code == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check_cuda(code, "cudaEventQuery");
  return true;
}

void CudaEvent::wait() const { check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize"); }

namespace {

// How StreamBuffer's memory, which is the device's default pool, goes from one stream to another: only when what used
// it has ended. The driver's own way makes the stream that gets it wait, and so a stream could come to wait for a
// message that its own work must go before.
void set_up_pool(int device) {
  static constexpr std::uint64_t kKept = std::uint64_t{256} << 20;  // bytes, beyond which a synchronisation gives back
  cudaMemPool_t pool = nullptr;
  check_cuda(cudaDeviceGetDefaultMemPool(&pool, device), "cudaDeviceGetDefaultMemPool");
  int no = 0;
  check_cuda(cudaMemPoolSetAttribute(pool, cudaMemPoolReuseAllowInternalDependencies, &no), "cudaMemPoolSetAttribute");
  std::uint64_t kept = kKept;
  check_cuda(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept), "cudaMemPoolSetAttribute");
}

}  // namespace

CudaStream::CudaStream(int device) : device_(device) {
  enter_cuda_device(device);
  set_up_pool(device);
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
}

CudaStream::~CudaStream() {
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

void CudaStream::wait_for(const CudaEvent& event) const {
  enter_cuda_device(device_);
  check_cuda(cudaStreamWaitEvent(stream_, event.get(), 0), "cudaStreamWaitEvent");
}

void CudaStream::wait_for(const CudaStream& other) const {
  CudaEvent event(other.device());
  event.record(other);
  wait_for(event);
}

bool CudaStream::idle() const {
  const cudaError_t code = cudaStreamQuery(stream_);
  if (code == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check_cuda(code, "cudaStreamQuery");
  return true;
}

bool CudaStream::is_recording() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream_, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

void CudaStream::synchronize() const { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

void CudaStream::copy(void* to, const void* from, std::size_t bytes) const {
  if (bytes == 0) return;
  enter_cuda_device(device_);
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "cudaMemcpyAsync");
}

void CudaStream::fill_zero(void* data, std::size_t bytes) const {
  if (bytes == 0) return;
  enter_cuda_device(device_);
  check_cuda(cudaMemsetAsync(data, 0, bytes, stream_), "cudaMemsetAsync");
}

namespace {

// Null: there is no more.
void* memory_of(const CudaStream& stream, std::size_t bytes) {
  void* data = nullptr;
  const cudaError_t code = cudaMallocAsync(&data, bytes, stream.get());
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check_cuda(code, "cudaMallocAsync");
  return data;
}

double in_mebibytes(std::size_t bytes) { return static_cast<double>(bytes) / 0x1p20; }

}  // namespace

StreamBuffer::StreamBuffer(const CudaStream& stream, std::size_t bytes, const MakeRoom& make_room) : stream_(stream) {
  if (bytes == 0) return;
  enter_cuda_device(stream.device());
  data_ = memory_of(stream, bytes);
  if (data_ == nullptr && make_room) {
    make_room();
    data_ = memory_of(stream, bytes);
  }
  if (data_ != nullptr) return;
  throw OutOfMemory(fmt::format(
      "cuda:{}: out of memory asking for {:.1f} MiB for what is copied or exchanged, with {:.1f} MiB free on the "
      "device; lower what is worked on at once",
      stream.device(), in_mebibytes(bytes), in_mebibytes(free_device_bytes(stream.device()))));
}

StreamBuffer::~StreamBuffer() {
  if (data_ != nullptr) cudaFreeAsync(data_, stream_.get());
}

PinnedBuffer::PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
  void* data = nullptr;
  if (bytes > 0) check_cuda(cudaHostAlloc(&data, bytes, cudaHostAllocPortable), "cudaHostAlloc");
  data_ = static_cast<std::byte*>(data);
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

bool is_device_memory(const void* data) {
  if (data == nullptr) return false;
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, data), "cudaPointerGetAttributes");
  return attributes.type == cudaMemoryTypeDevice;
}

}  // namespace kvloom
