// Merges by the two ids that they join: open addressing, one cache line a look-up.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace kvloom::huggingface {

class PairTable {
 public:
  static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
  struct Merge {
    std::uint32_t rank = kNone;  // the lower, the earlier
    std::int32_t id = -1;        // of what is made
  };

  // Room for `count` merges.
  void reserve(std::size_t count) {
    slots_.assign(std::bit_ceil(2 * count + 2), {});
    mask_ = slots_.size() - 1;
  }

  // A pair that is there already gets the later merge.
  void insert(std::int32_t left, std::int32_t right, Merge merge) {
    Slot& slot = slots_[place_of(key_of(left, right))];
    slot = {key_of(left, right), merge};
  }

  // A merge of rank kNone where the two do not merge.
  Merge find(std::int32_t left, std::int32_t right) const { return slots_[place_of(key_of(left, right))].merge; }

 private:
  struct Slot {
    std::uint64_t key = kEmpty;
    Merge merge;
  };
  static constexpr std::uint64_t kEmpty = std::numeric_limits<std::uint64_t>::max();

  static std::uint64_t key_of(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
  }
  // The slot of the key, or the empty one where it would go.
  std::size_t place_of(std::uint64_t key) const {
    std::uint64_t hash = key * 0x9e3779b97f4a7c15u;
    std::size_t place = (hash ^ hash >> 32) & mask_;
    while (slots_[place].key != key && slots_[place].key != kEmpty) place = (place + 1) & mask_;
    return place;
  }

  std::vector<Slot> slots_ = std::vector<Slot>(1);
  std::size_t mask_ = 0;
};

}  // namespace kvloom::huggingface
