// Where the keys and values of a sequence lie: one after another, or in pages.
#pragma once

#include <algorithm>

#include "kernels/attention.h"

namespace kvloom::cpu {

// Offsets, in elements, of the rows of one KV head in `key` and in `value`.
class KeyRows {
 public:
  // Strides are filled in.
  KeyRows(const AttentionForward& op, std::int64_t sequence, std::int64_t kv_head)
      : first_(kv_head * op.shape.head_dim), stride_(op.shape.key_stride) {
    const PageTable& table = op.page_table;
    if (table.pages == nullptr) {
      first_ += sequence * op.shape.key_batch_stride;
    } else {
      pages_ = table.pages + sequence * table.pages_per_sequence;
      page_bits_ = page_bits(table);
    }
  }

  std::int64_t stride() const { return stride_; }

  std::int64_t offset_of(std::int64_t key) const {
    if (pages_ == nullptr) return first_ + key * stride_;
    const std::int64_t page = pages_[key >> page_bits_];
    return first_ + ((page << page_bits_) + (key & last_of_page())) * stride_;
  }

  // How many rows from that of `key` on, `most` at most, are `stride` apart.
  std::int64_t run(std::int64_t key, std::int64_t most) const {
    return pages_ == nullptr ? most : std::min(most, last_of_page() + 1 - (key & last_of_page()));
  }

 private:
  std::int64_t last_of_page() const { return (std::int64_t{1} << page_bits_) - 1; }

  std::int64_t first_;
  std::int64_t stride_;
  const std::int32_t* pages_ = nullptr;  // the sequence's
  int page_bits_ = 0;
};

}  // namespace kvloom::cpu
