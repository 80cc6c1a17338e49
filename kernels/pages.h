// Keys and values in pages, Kwon et al. 2023, "PagedAttention" (arXiv 2309.06180): a pool of rows is cut into pages,
// and a sequence's positions lie in whichever pages its row of the page table names. Sequences may share pages.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/error.h"

namespace kvloom {

// Position j of sequence b is row pages[b, j / page_size] * page_size + j % page_size of the pool. Entries for
// positions that an operation has no business with are not read, and may be anything.
struct PageTable {
  const std::int32_t* pages = nullptr;  // [sequences, pages_per_sequence], in the pool's memory; null: no pages
  std::int64_t pages_per_sequence = 0;
  std::int64_t page_size = 0;  // rows: a power of two, 16 or more
};

// Throws Error where there are no pages, their size is none, or `positions` of a sequence have no place in them.
inline void check_pages(const PageTable& table, std::int64_t positions) {
  if (table.pages == nullptr) fail("pages: there is no page table");
  if (table.page_size < 16 || !std::has_single_bit(static_cast<std::uint64_t>(table.page_size))) {
    fail("pages: page size {}; right is a power of two, 16 or more", table.page_size);
  }
  if (positions > table.pages_per_sequence * table.page_size) {
    fail("pages: {} positions in {} pages of {}", positions, table.pages_per_sequence, table.page_size);
  }
}

// log2 of the page size.
inline int page_bits(const PageTable& table) { return std::countr_zero(static_cast<std::uint64_t>(table.page_size)); }

}  // namespace kvloom
