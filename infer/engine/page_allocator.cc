#include "infer/engine/page_allocator.h"

#include <xxhash.h>

#include <cstring>
#include <iterator>

#include "kernels/error.h"

namespace kvloom {

PageKey next_page_key(const PageKey& before, std::span<const std::int32_t> tokens) {
  std::vector<std::byte> bytes(sizeof(before) + tokens.size_bytes());
  std::memcpy(bytes.data(), &before, sizeof(before));
  if (!tokens.empty()) std::memcpy(bytes.data() + sizeof(before), tokens.data(), tokens.size_bytes());
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.high64, hash.low64};
}

PageAllocator::PageAllocator(std::int64_t pages) : pages_(static_cast<std::size_t>(pages)) {
  for (std::int64_t page = pages; page-- > 0;) free_.push_back(static_cast<std::int32_t>(page));
}

std::int64_t PageAllocator::available() const { return std::ssize(free_) + std::ssize(cached_); }

std::int32_t PageAllocator::take() {
  if (available() == 0) fail("pages: all {} are held; release one first", pages_.size());
  std::int32_t page = 0;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else {
    page = cached_.front();
    cached_.pop_front();
    by_key_.erase(*at(page).key);
    at(page).key.reset();
  }
  at(page).holders = 1;
  ++held_;
  return page;
}

void PageAllocator::hold(std::int32_t number) {
  Page& page = at(number);
  if (page.holders == 0) {
    if (!page.key.has_value()) fail("pages: page {} is free; only held and cached ones can be held", number);
    cached_.erase(page.place);
    ++held_;
  }
  ++page.holders;
}

void PageAllocator::release(std::int32_t number) {
  Page& page = at(number);
  if (page.holders == 0) fail("pages: page {} is released, but nobody holds it", number);
  if (--page.holders > 0) return;
  --held_;
  if (page.key.has_value()) {
    page.place = cached_.insert(cached_.end(), number);
  } else {
    free_.push_back(number);
  }
}

void PageAllocator::publish(std::int32_t number, const PageKey& key) {
  Page& page = at(number);
  if (page.holders == 0) fail("pages: page {} is published, but nobody holds it", number);
  if (page.key.has_value()) {
    if (!(*page.key == key)) fail("pages: page {} is published a second time, with another key", number);
    return;
  }
  if (by_key_.emplace(key, number).second) page.key = key;
}

std::optional<std::int32_t> PageAllocator::find(const PageKey& key) const {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return std::nullopt;
  return found->second;
}

PageCounts PageAllocator::counts() const { return {std::ssize(pages_), held_, std::ssize(cached_), std::ssize(free_)}; }

}  // namespace kvloom
