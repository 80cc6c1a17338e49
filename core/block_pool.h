// Carves blocks out of large segments, keeps freed ones for the next request and joins neighbours again: the logic of a
// caching allocator, apart from the memory that it hands out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "core/allocator.h"

namespace kvloom {

// Where segments come from.
class SegmentSource {
 public:
  virtual ~SegmentSource() = default;
  virtual void* take(std::size_t bytes) = 0;  // null when there is no more
  virtual void give_back(void* segment) noexcept = 0;
  virtual std::size_t free_bytes() = 0;  // what `take` could still give, as far as is known; for messages
};

// When memory runs out: whether segments of which nothing is held are given back, or stay the pool's own.
enum class FreeSegments : std::uint8_t { kGivenBack, kKept };

// Not thread-safe. Blocks are aligned to 512 bytes when segments are.
class BlockPool {
 public:
  // `name` stands first in messages: "cuda:0". The source outlives the pool.
  BlockPool(std::string name, SegmentSource& source, FreeSegments free_segments = FreeSegments::kGivenBack)
      : name_(std::move(name)), source_(source), free_segments_(free_segments) {}
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // What blocks are for from now on ("weights", "kept activations"); returns what it was before.
  std::string set_purpose(std::string purpose);

  // Throws Error naming what was asked, what is held and for what, and what to lower.
  void* allocate(std::size_t bytes);
  void release(void* block) noexcept;
  // Whether `block` is one that the pool has handed out.
  bool has(void* block) const;

  const AllocatorStatistics& statistics() const { return statistics_; }
  std::size_t taken_bytes() const { return taken_bytes_; }  // in segments, held or cached
  std::size_t peak_taken_bytes() const { return peak_taken_bytes_; }

  // Gives back every segment of which nothing is held.
  void trim() noexcept;

 private:
  enum class Kind : std::uint8_t { kSmall, kLarge };  // blocks of up to 1 MiB have segments of their own
  struct Block {
    std::size_t bytes;
    void* segment;
    std::size_t segment_bytes;
    Kind kind;
    bool held;
    std::string purpose;
  };
  using Blocks = std::map<std::byte*, Block>;

  Blocks::iterator find_free(std::size_t bytes, Kind kind);
  Blocks::iterator take_segment(std::size_t bytes, Kind kind);  // end() when there is none
  void split(Blocks::iterator block, std::size_t bytes);
  void join_with_next(Blocks::iterator block);
  void add_free(Blocks::iterator block);
  void remove_free(Blocks::iterator block);
  [[noreturn]] void out_of_memory(std::size_t bytes) const;

  std::string name_;
  SegmentSource& source_;
  FreeSegments free_segments_;
  std::string purpose_ = "other";
  Blocks blocks_;  // by address: neighbours in a segment stand together
  std::map<Kind, std::set<std::pair<std::size_t, std::byte*>>> free_;  // by size
  std::map<std::string, std::size_t> held_by_;
  AllocatorStatistics statistics_;
  std::size_t taken_bytes_ = 0;
  std::size_t peak_taken_bytes_ = 0;
};

}  // namespace kvloom
