// What tests of the GPU share: a device, and host buffers seen through copies on it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "core/cuda_allocator.h"
#include "core/cuda_stream.h"
#include "core/tensor.h"
#include "kernels/error.h"

namespace kvloom::test {

// Skips every test, with the reason, where there is no GPU.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const CudaPresence presence = cuda_presence();
    if (presence.devices == 0) GTEST_SKIP() << presence.reason;
    allocator_ = std::make_unique<CachingCudaAllocator>(0);
  }
  CachingCudaAllocator& allocator() { return *allocator_; }
  cuda::Queue& queue() { return *allocator_->device().queue; }

 private:
  std::unique_ptr<CachingCudaAllocator> allocator_;
};

// Copies of host vectors on the device, found by the host's addresses: `mirror(p)` is where p's element is there.
class Mirror {
 public:
  template <typename... Vectors>
  explicit Mirror(Allocator& allocator, const Vectors&... vectors) : allocator_(allocator) {
    (add(vectors), ...);
  }
  template <typename T>
  void add(const std::vector<T>& host) {
    copies_.push_back({reinterpret_cast<const std::byte*>(host.data()), host.size() * sizeof(T),
                       Tensor::of<T>(allocator_, {static_cast<std::int64_t>(host.size())}, host)});
  }
  template <typename T>
  T* operator()(T* host) const {
    if (host == nullptr) return nullptr;
    const auto* at = reinterpret_cast<const std::byte*>(host);
    for (const Copy& copy : copies_) {
      if (at < copy.host || at >= copy.host + copy.bytes) continue;
      auto* device = static_cast<std::byte*>(const_cast<void*>(copy.tensor.data())) + (at - copy.host);
      if constexpr (std::is_void_v<T>) {
        return device;
      } else {
        return reinterpret_cast<T*>(device);
      }
    }
    fail("mirror: an address that no vector has");
  }
  // What the device's copy of `host` holds now.
  template <typename T>
  std::vector<T> now(const std::vector<T>& host) const {
    if (host.empty()) return {};
    for (const Copy& copy : copies_) {
      if (copy.host == reinterpret_cast<const std::byte*>(host.data())) return copy.tensor.values<T>();
    }
    fail("mirror: a vector that was not added");
  }

 private:
  struct Copy {
    const std::byte* host;
    std::size_t bytes;
    Tensor tensor;
  };
  Allocator& allocator_;
  std::vector<Copy> copies_;
};

}  // namespace kvloom::test
