// Pinned host memory that is kept for the next one: freeing it makes the host wait for the whole device, which may be
// waiting for what this host would do next.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

#include "core/cuda_stream.h"

namespace kvloom {

// Thread-safe. What was taken may outlive the pool.
class PinnedPool {
 public:
  // At least so many bytes, the caller's until the pointer goes.
  std::shared_ptr<PinnedBuffer> take(std::size_t bytes);

 private:
  struct Kept {
    std::mutex mutex;
    std::multimap<std::size_t, std::unique_ptr<PinnedBuffer>> buffers;  // by size
  };
  std::shared_ptr<Kept> kept_ = std::make_shared<Kept>();
};

}  // namespace kvloom
