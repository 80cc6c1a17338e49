// One GPU as the host drives it: which there are, streams, events, copies, staging. Every build has these; in one
// without CUDA all but `cuda_presence` throw Error naming KVLOOM_CUDA. A call that CUDA refuses throws Error naming it.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

struct CUstream_st;  // what cudaStream_t and cudaEvent_t point to
struct CUevent_st;

namespace kvloom {

struct CudaPresence {
  int devices = 0;
  std::string reason;  // why there is none: no CUDA in the build, no driver, no device
};
CudaPresence cuda_presence();

struct GpuTraits {
  std::string name;                // "NVIDIA H100 80GB HBM3"
  std::size_t block_shared_bytes;  // shared memory that a block of threads may have when its kernel asks
};
GpuTraits gpu_traits(int device);

// Makes a device the calling thread's own until the thread enters another. All below but PinnedBuffer enter their
// device by themselves; a thread that touches no other one stays there. Nothing goes back to the former one: CUDA makes
// a context where a thread goes, so every rank of a machine would take memory of its first GPU.
void enter_cuda_device(int device);

std::size_t free_device_bytes(int device);

// Has device memory given back that somebody holds on to and nothing needs. Any thread may call it.
using MakeRoom = std::function<void()>;

class CudaStream;

// A point in a stream's work. Carries no time.
class CudaEvent {
 public:
  explicit CudaEvent(int device);
  ~CudaEvent();
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  // The point after everything that the stream has been given so far.
  void record(const CudaStream& stream);
  // True when the device has come there, or nothing was recorded.
  bool reached() const;
  void wait() const;  // the host's

  CUevent_st* get() const { return event_; }

 private:
  CUevent_st* event_ = nullptr;
};

// Work that a device does in order; it waits for no other stream unless told to.
class CudaStream {
 public:
  explicit CudaStream(int device);
  // Ends the work first.
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  int device() const { return device_; }
  CUstream_st* get() const { return stream_; }

  // Work given from now on starts after the event.
  void wait_for(const CudaEvent& event) const;
  // The same for all that `other` has been given so far.
  void wait_for(const CudaStream& other) const;
  bool idle() const;
  bool is_recording() const;  // what it is given goes into a graph (core/cuda_graph.h)
  void synchronize() const;   // the host waits

  // bytes from one place to another, host or device. Host memory that is not pinned makes the host wait.
  void copy(void* to, const void* from, std::size_t bytes) const;
  void fill_zero(void* data, std::size_t bytes) const;

 private:
  int device_;
  CUstream_st* stream_ = nullptr;
};

// Device memory that lives in a stream's order: it is there for work given to the stream after it was made, and goes
// when the stream has done what it was given before the end. Not for tensors: those take the allocator's.
class StreamBuffer {
 public:
  // Where the device has no more it asks `make_room`, if given, and tries again; then throws OutOfMemory.
  StreamBuffer(const CudaStream& stream, std::size_t bytes, const MakeRoom& make_room = {});
  ~StreamBuffer();
  StreamBuffer(const StreamBuffer&) = delete;
  StreamBuffer& operator=(const StreamBuffer&) = delete;

  void* data() const { return data_; }
  const CudaStream& stream() const { return stream_; }

 private:
  const CudaStream& stream_;
  void* data_ = nullptr;
};

// Host memory that the device copies to and from on its own.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(std::size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_;
};

// True for memory that kernels may read: a device's own.
bool is_device_memory(const void* data);

}  // namespace kvloom
