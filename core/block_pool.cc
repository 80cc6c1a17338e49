#include "core/block_pool.h"

#include <algorithm>
#include <vector>

#include "core/out_of_memory.h"

namespace kvloom {
namespace {

constexpr std::size_t kGrain = 512;
constexpr std::size_t kMebibyte = 1U << 20;
constexpr std::size_t kSmallSegment = 2 * kMebibyte;
constexpr std::size_t kLargeSegment = 20 * kMebibyte;

std::size_t rounded(std::size_t bytes, std::size_t grain) {
  return std::max(grain, (bytes + grain - 1) / grain * grain);
}

std::string in_mebibytes(std::size_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / static_cast<double>(kMebibyte));
}

}  // namespace

BlockPool::~BlockPool() {
  std::set<void*> segments;
  for (const auto& [address, block] : blocks_) segments.insert(block.segment);
  for (void* segment : segments) source_.give_back(segment);
}

std::string BlockPool::set_purpose(std::string purpose) { return std::exchange(purpose_, std::move(purpose)); }

void* BlockPool::allocate(std::size_t bytes) {
  const std::size_t size = rounded(bytes, kGrain);
  if (size < bytes) out_of_memory(bytes);
  const Kind kind = size <= kMebibyte ? Kind::kSmall : Kind::kLarge;
  auto block = find_free(size, kind);
  if (block == blocks_.end()) block = take_segment(size, kind);
  if (block == blocks_.end() && free_segments_ == FreeSegments::kGivenBack) {
    // Cached segments of other sizes may be all that stands in the way.
    trim();
    block = take_segment(size, kind);
  }
  if (block == blocks_.end()) out_of_memory(size);

  remove_free(block);
  split(block, size);
  block->second.held = true;
  block->second.purpose = purpose_;
  held_by_[purpose_] += block->second.bytes;
  statistics_.held_bytes += block->second.bytes;
  statistics_.peak_bytes = std::max(statistics_.peak_bytes, statistics_.held_bytes);
  return block->first;
}

bool BlockPool::has(void* address) const {
  const auto block = blocks_.find(static_cast<std::byte*>(address));
  return block != blocks_.end() && block->second.held;
}

void BlockPool::release(void* address) noexcept {
  const auto block = blocks_.find(static_cast<std::byte*>(address));
  block->second.held = false;
  held_by_[block->second.purpose] -= block->second.bytes;
  statistics_.held_bytes -= block->second.bytes;
  add_free(block);
  join_with_next(block);
  if (block != blocks_.begin()) join_with_next(std::prev(block));
}

BlockPool::Blocks::iterator BlockPool::find_free(std::size_t bytes, Kind kind) {
  const auto fit = free_[kind].lower_bound({bytes, nullptr});
  return fit == free_[kind].end() ? blocks_.end() : blocks_.find(fit->second);
}

BlockPool::Blocks::iterator BlockPool::take_segment(std::size_t bytes, Kind kind) {
  std::size_t size = kSmallSegment;
  if (kind == Kind::kLarge) size = bytes < kLargeSegment / 2 ? kLargeSegment : rounded(bytes, kSmallSegment);
  void* segment = size < bytes ? nullptr : source_.take(size);
  if (segment == nullptr) return blocks_.end();
  taken_bytes_ += size;
  peak_taken_bytes_ = std::max(peak_taken_bytes_, taken_bytes_);
  const auto block =
      blocks_.emplace(static_cast<std::byte*>(segment), Block{size, segment, size, kind, false, {}}).first;
  add_free(block);
  return block;
}

// The rest stays free, unless it is too small to be of use.
void BlockPool::split(Blocks::iterator block, std::size_t bytes) {
  const std::size_t rest = block->second.bytes - bytes;
  if (rest < (block->second.kind == Kind::kSmall ? kGrain : kMebibyte)) return;
  Block other = block->second;
  other.bytes = rest;
  block->second.bytes = bytes;
  add_free(blocks_.emplace(block->first + bytes, std::move(other)).first);
}

void BlockPool::join_with_next(Blocks::iterator block) {
  const auto next = std::next(block);
  if (next == blocks_.end() || next->second.segment != block->second.segment) return;
  if (block->second.held || next->second.held) return;
  remove_free(block);
  remove_free(next);
  block->second.bytes += next->second.bytes;
  blocks_.erase(next);
  add_free(block);
}

void BlockPool::add_free(Blocks::iterator block) {
  free_[block->second.kind].emplace(block->second.bytes, block->first);
  statistics_.cached_bytes += block->second.bytes;
}

void BlockPool::remove_free(Blocks::iterator block) {
  free_[block->second.kind].erase({block->second.bytes, block->first});
  statistics_.cached_bytes -= block->second.bytes;
}

void BlockPool::trim() noexcept {
  for (auto block = blocks_.begin(); block != blocks_.end();) {
    const auto next = std::next(block);
    if (!block->second.held && block->second.bytes == block->second.segment_bytes) {
      remove_free(block);
      taken_bytes_ -= block->second.bytes;
      source_.give_back(block->second.segment);
      blocks_.erase(block);
    }
    block = next;
  }
}

void BlockPool::out_of_memory(std::size_t bytes) const {
  std::vector<std::pair<std::size_t, std::string>> holders;
  for (const auto& [purpose, held] : held_by_) {
    if (held > 0) holders.emplace_back(held, purpose);
  }
  std::sort(holders.rbegin(), holders.rend());
  std::string list;
  for (const auto& [held, purpose] : holders) {
    list += fmt::format("{}{} {}", list.empty() ? "" : ", ", purpose, in_mebibytes(held));
  }
  throw OutOfMemory(fmt::format(
      "{}: out of memory asking for {} for {} with {} held ({}), {} cached and {} free on the device; lower what is "
      "worked on at once",
      name_, in_mebibytes(bytes), purpose_, in_mebibytes(statistics_.held_bytes), list.empty() ? "nothing" : list,
      in_mebibytes(statistics_.cached_bytes), in_mebibytes(source_.free_bytes())));
}

}  // namespace kvloom
