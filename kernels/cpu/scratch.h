// Memory that a thread keeps between calls, so that no call allocates once it has grown.
#pragma once

#include <hwy/aligned_allocator.h>

#include <cstddef>

#include "kernels/error.h"

namespace kvloom::cpu {

class Scratch {
 public:
  // At least `bytes`, aligned for any vector. What it held before is gone.
  template <typename T = char>
  T* at_least(std::size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_ = hwy::AllocateAligned<char>(bytes);
      if (memory_ == nullptr) fail("kernels: no memory for {} bytes of scratch", bytes);
      size_ = bytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  hwy::AlignedFreeUniquePtr<char[]> memory_;
  std::size_t size_ = 0;
};

}  // namespace kvloom::cpu
