// One item of a ragged attention: queries of a sequence over their keys, block by block, range by range.
// Included once for every instruction set.
#if defined(KVLOOM_RAGGED_BLOCK_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVLOOM_RAGGED_BLOCK_INL
#undef KVLOOM_RAGGED_BLOCK_INL
#else
#define KVLOOM_RAGGED_BLOCK_INL
#endif

#include <utility>

#include "kernels/cpu/ragged_few-inl.h"
#include "kernels/cpu/ragged_heads-inl.h"
#include "kernels/cpu/ragged_items.h"
#include "kernels/cpu/ragged_softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

// `Rows` takes the item's rows through the keys of a range:
//   Rows(const ItemRows&, Math&, char* scratch)  loads the queries
//   begin_range(states)                          states (=) [rows of all heads, size] of nothing
//   absorb(BlockKeys)                            a block of the range's keys
//   end_range()                                  the states are whole
template <typename Rows>
class RaggedBlock {
 public:
  // `following`, or null: what this thread is likely to take next.
  RaggedBlock(const RaggedAttention& op, const RaggedItem& item, const RaggedItem* following, typename Rows::Math& math,
              char* scratch)
      : rows_(op, item),
        following_(following),
        key_pages_(op, rows_.sequence.pages),
        value_pages_(op, rows_.sequence.value_pages),
        size_(row_state_size(op)),
        all_(rows_.count * rows_.heads()),
        order_(math.column_order()),
        states_(reinterpret_cast<float*>(scratch)),
        // Of one range nothing is joined.
        totals_(item.keys.end <= (item.keys.begin / kKeyRange + 1) * kKeyRange ? states_ : states_ + all_ * size_),
        by_block_(rows_, math, reinterpret_cast<char*>(states_ + 2 * all_ * size_)) {}

  // Of an item with up to so many KV heads and rows of each.
  static std::int64_t scratch_bytes(const RaggedAttention& op, std::int64_t heads, std::int64_t rows) {
    return 2 * heads * rows * row_state_size(op) * 4 + Rows::scratch_bytes(op, heads, rows);
  }

  void run() {
    const Span keys = rows_.item.keys;
    for (std::int64_t n = 0; n < all_; ++n) clear_state(totals_ + n * size_, size_);
    for (std::int64_t begin = keys.begin; begin < keys.end;) {
      const std::int64_t end = std::min(keys.end, (begin / kKeyRange + 1) * kKeyRange);
      absorb_range({begin, end});
      begin = end;
    }
    leave();
  }

 private:
  void absorb_range(Span keys) {
    by_block_.begin_range(states_);
    // Blocks begin at multiples of their size, whatever is seen of the first.
    Places blocks[2];
    Places* places = &blocks[0];
    Places* next = &blocks[1];
    const std::int64_t begin = keys.begin / kKeyBlock * kKeyBlock;
    find_places(begin, *places);
    for (std::int64_t first = begin; first < keys.end; first += kKeyBlock) {
      std::int64_t next_count = find_places(first + kKeyBlock, *next);
      if (next_count == 0) next_count = find_places_of_following(*next);
      by_block_.absorb({.rows = rows_of(*places),
                        .first = first,
                        .begin = std::max<std::int64_t>(0, keys.begin - first),
                        .end = std::min(kKeyBlock, keys.end - first),
                        .next = rows_of(*next),
                        .next_count = next_count});
      std::swap(places, next);
    }
    by_block_.end_range();
    if (totals_ == states_) return;
    for (std::int64_t n = 0; n < all_; ++n) join_state(states_ + n * size_, size_, totals_ + n * size_);
  }

  // Rows of a block's keys, and of its values where those have pages of their own.
  struct Places {
    std::int64_t keys[kKeyBlock];
    std::int64_t values[kKeyBlock];
  };

  bool has_value_pages() const { return rows_.sequence.value_pages != nullptr; }
  BlockRows rows_of(const Places& places) const {
    return {places.keys, has_value_pages() ? places.values : places.keys};
  }

  // places (=) of the block's keys that the item reads; returns where they end.
  std::int64_t find_places(std::int64_t first, Places& places) const {
    const Span read = within_block(rows_.item.keys, first, kKeyBlock);
    const std::int64_t heads = rows_.op.kv_heads;
    for (std::int64_t j = read.begin; j < read.end; ++j) places.keys[j] = key_pages_.row_of(first + j) * heads;
    if (!has_value_pages()) return read.end;
    for (std::int64_t j = read.begin; j < read.end; ++j) places.values[j] = value_pages_.row_of(first + j) * heads;
    return read.end;
  }

  // The first keys of the item that follows, if they are of the same heads.
  std::int64_t find_places_of_following(Places& places) const {
    const RaggedItem& item = rows_.item;
    if (following_ == nullptr || following_->first_head != item.first_head || following_->last_head != item.last_head) {
      return 0;
    }
    const SequenceRows& sequence = rows_.op.sequences[static_cast<std::size_t>(following_->sequence)];
    const PageRows keys_at(rows_.op, sequence.pages);
    const PageRows values_at(rows_.op, sequence.value_pages == nullptr ? sequence.pages : sequence.value_pages);
    const Span keys = following_->keys;
    const std::int64_t count = std::min(keys.end - keys.begin, kKeyBlock - keys.begin % kKeyBlock);
    for (std::int64_t j = 0; j < count; ++j) {
      places.keys[j] = keys_at.row_of(keys.begin + j) * rows_.op.kv_heads;
      if (has_value_pages()) places.values[j] = values_at.row_of(keys.begin + j) * rows_.op.kv_heads;
    }
    return count;
  }

  void leave() {
    const RaggedItem& item = rows_.item;
    if (item.partial != nullptr) {
      std::copy(totals_, totals_ + all_ * size_, item.partial);
      return;
    }
    for (std::int64_t head = item.first_head; head < item.last_head; ++head) {
      for (std::int64_t row = 0; row < rows_.count; ++row) {
        write_output(rows_.op, totals_ + rows_.index(head, row) * size_, order_, rows_.token(row),
                     rows_.head_of_query(head, row));
      }
    }
  }

  ItemRows rows_;
  const RaggedItem* following_;
  PageRows key_pages_;
  PageRows value_pages_;
  std::int64_t size_;
  std::int64_t all_;  // rows of all heads
  ColumnOrder order_;
  float* states_;  // of the range at hand [rows of all heads, size]
  float* totals_;  // of the ranges before it
  Rows by_block_;
};

// Parts of one softmax, in the order of their keys, become the output of their rows.
inline void join_partials(const RaggedAttention& op, ColumnOrder order, const RaggedItem* items, std::int64_t count) {
  const ItemRows rows(op, items[0]);
  const std::int64_t size = row_state_size(op);
  for (std::int64_t head = rows.item.first_head; head < rows.item.last_head; ++head) {
    for (std::int64_t row = 0; row < rows.count; ++row) {
      const std::int64_t at = rows.index(head, row) * size;
      float* total = rows.item.partial + at;
      for (std::int64_t part = 1; part < count; ++part) join_state(items[part].partial + at, size, total);
      write_output(op, total, order, rows.token(row), rows.head_of_query(head, row));
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#endif
