// What a kernel needs beside its operands: the stream that it runs on, memory in that stream's order, cuBLASLt.
// `core/cuda_allocator.h` has one for all the tensors that it hands out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/matmul.h"

struct CUstream_st;  // what cudaStream_t points to

namespace kvloom::cuda {

class CudnnAttention;
class MatmulPlans;

// Device memory that is free again for the next piece of work given to the same stream.
struct ScratchSource {
  std::function<void*(std::size_t)> allocate;
  std::function<void(void*, std::size_t)> release;
};

// Used by one host thread at a time, like its stream.
class Queue {
 public:
  // The stream outlives the queue. Throws Error naming the call that CUDA refused.
  Queue(int device, CUstream_st* stream, ScratchSource scratch);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  int device() const { return device_; }
  CUstream_st* stream() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }
  const ScratchSource& scratch() const { return scratch_; }
  // Makes the queue's device the calling thread's own, as CUDA wants it of whoever gives work to a stream.
  void enter() const;
  MatmulPlans& matmul_plans() { return *matmul_plans_; }
  MatmulPrecision matmul_precision() const { return matmul_precision_; }
  void set_matmul_precision(MatmulPrecision precision) { matmul_precision_ = precision; }
  // Null: attention is kvloom's own (kernels/attention_choice.h).
  CudnnAttention* cudnn_attention() const { return cudnn_attention_.get(); }
  void set_cudnn_attention(std::unique_ptr<CudnnAttention> attention);

 private:
  int device_;
  CUstream_st* stream_;
  ScratchSource scratch_;
  int multiprocessors_;
  std::unique_ptr<MatmulPlans> matmul_plans_;
  MatmulPrecision matmul_precision_ = MatmulPrecision::kF32;
  std::unique_ptr<CudnnAttention> cudnn_attention_;
};

// `count` elements of T for the work that is given to the queue while this lives.
template <typename T>
class Scratch {
 public:
  Scratch(Queue& queue, std::int64_t count)
      : source_(queue.scratch()),
        bytes_(static_cast<std::size_t>(count) * sizeof(T)),
        data_(bytes_ == 0 ? nullptr : source_.allocate(bytes_)) {}
  ~Scratch() {
    if (data_ != nullptr) source_.release(data_, bytes_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* data() const { return static_cast<T*>(data_); }

 private:
  const ScratchSource& source_;
  std::size_t bytes_;
  void* data_;
};

}  // namespace kvloom::cuda
