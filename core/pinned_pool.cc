#include "core/pinned_pool.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace kvloom {

std::shared_ptr<PinnedBuffer> PinnedPool::take(std::size_t bytes) {
  const std::size_t size = std::bit_ceil(std::max<std::size_t>(bytes, 4096));
  std::unique_ptr<PinnedBuffer> buffer;
  {
    const std::lock_guard lock(kept_->mutex);
    if (const auto found = kept_->buffers.find(size); found != kept_->buffers.end()) {
      buffer = std::move(found->second);
      kept_->buffers.erase(found);
    }
  }
  if (buffer == nullptr) buffer = std::make_unique<PinnedBuffer>(size);
  return {buffer.release(), [kept = kept_](PinnedBuffer* returned) {
            const std::lock_guard lock(kept->mutex);
            kept->buffers.emplace(returned->bytes(), std::unique_ptr<PinnedBuffer>(returned));
          }};
}

}  // namespace kvloom
