// Page tables for tests: pages in no order, and entries that nobody has use for name none.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/pages.h"
#include "tests/support/random.h"

namespace kvloom::test {

class RandomPages {
 public:
  // Places for `positions` of each sequence, and perhaps some more.
  RandomPages(Random& random, std::int64_t sequences, std::int64_t positions, std::int64_t page_size)
      : page_size_(page_size),
        pages_per_sequence_((positions + page_size - 1) / page_size + random.integer(0, 2)),
        entries_(static_cast<std::size_t>(sequences * pages_per_sequence_)),
        unused_(entries_.size() + static_cast<std::size_t>(random.integer(0, 3))) {
    for (std::int32_t& entry : entries_) entry = random.flip() ? kNowhere : -kNowhere;
    std::iota(unused_.begin(), unused_.end(), 0);
    std::shuffle(unused_.begin(), unused_.end(), random.engine());
    rows_ = static_cast<std::int64_t>(unused_.size()) * page_size;
  }

  std::int64_t page_size() const { return page_size_; }
  std::int64_t rows() const { return rows_; }  // of the pool
  const std::vector<std::int32_t>& entries() const { return entries_; }
  PageTable table(const std::int32_t* pages) const { return {pages, pages_per_sequence_, page_size_}; }

  // The pool's row of a position, on a new page where it has none yet.
  std::int64_t row(std::int64_t sequence, std::int64_t position) {
    std::int32_t& page = entry(sequence, position / page_size_);
    if (page == kNowhere || page == -kNowhere) {
      page = unused_.back();
      unused_.pop_back();
    }
    return page * page_size_ + position % page_size_;
  }
  // The position's page is from now on that of `other` at the same position.
  void share(std::int64_t sequence, std::int64_t position, std::int64_t other) {
    const std::int64_t row_of_other = row(other, position);
    entry(sequence, position / page_size_) = static_cast<std::int32_t>(row_of_other / page_size_);
  }

 private:
  static constexpr std::int32_t kNowhere = std::numeric_limits<std::int32_t>::max();

  std::int32_t& entry(std::int64_t sequence, std::int64_t page) {
    return entries_[static_cast<std::size_t>(sequence * pages_per_sequence_ + page)];
  }

  std::int64_t page_size_;
  std::int64_t pages_per_sequence_;
  std::vector<std::int32_t> entries_;
  std::vector<std::int32_t> unused_;
  std::int64_t rows_;
};

}  // namespace kvloom::test
