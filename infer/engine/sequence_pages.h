// The pages that one sequence holds, by group, and the pools that they come from.
//
// A group without a window keeps all of a sequence's pages: those of what is known are taken at admission, later ones
// when they are needed. A windowed group gives back what no row can see any more; what a sequence can hold of it at one
// time is set aside at admission, as if it shared nothing: whoever shares a page may keep it while others go on. Once
// the sequence decodes, that is less.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "infer/engine/page_allocator.h"
#include "infer/engine/step_plan.h"

namespace kvloom {

// Sources of equal reach: they share page tables.
struct PageGroup {
  std::int64_t reach = 0;        // how far back a reader sees, in positions; 0: everything
  std::int64_t pages = 0;        // of the pool
  std::int64_t swap_places = 0;  // pages that the host's swap space takes
};

struct PagePool {
  explicit PagePool(const PageGroup& of) : group(of), pages(of.pages), places(of.swap_places) {}

  bool is_windowed() const { return group.reach > 0; }
  std::int64_t room() const { return is_windowed() ? group.pages - set_aside : pages.available(); }

  PageGroup group;
  PageAllocator pages;
  PageAllocator places;
  std::int64_t set_aside = 0;
};

struct PagePools {
  // The page of the first position that a row at `position` sees.
  std::int64_t first_seen(const PagePool& pool, std::int64_t position) const;
  // How many of the first `most` positions, rounded down to `grid`, have their pages in every group.
  std::int64_t longest_hit(std::span<const PageKey> keys, std::int64_t most, std::int64_t grid) const;

  std::vector<PagePool> pools;
  std::int64_t page_size = 0;
  std::int64_t ahead = 1;  // a sequence has pages for so many positions that are not final, at most
};

class SequencePages {
 public:
  // Of a sequence with so many positions at most.
  SequencePages(PagePools& pools, std::int64_t most_positions);
  ~SequencePages() { release(); }
  SequencePages(const SequencePages&) = delete;
  SequencePages& operator=(const SequencePages&) = delete;

  // The most pages that the sequence holds at one time, with pages for so many positions that are not final.
  std::int64_t most(const PagePool& pool, std::int64_t ahead) const;

  // These return false, and change nothing, when a pool lacks the pages.
  // Holds the pages of `hit` positions by their keys, and takes those up to position `end`.
  bool admit(std::span<const PageKey> keys, std::int64_t hit, std::int64_t end);
  // Shares the parent's full pages before `end`; the last one, if it is partial, is to be copied.
  bool fork(const SequencePages& parent, std::int64_t end);
  // Comes back from swap space.
  bool swap_in(std::int64_t end, StepPlan& plan);
  // Goes to swap space with what positions before `computed` left. Also false when that is nothing.
  bool swap_out(std::int64_t computed, StepPlan& plan);

  // Takes pages up to position `end`. False when a group without a window has none; what was taken stays.
  bool cover(std::int64_t end);
  // The pages of positions [begin, end) are complete. `keys` are by page, from the sequence's start.
  void publish(std::int64_t begin, std::int64_t end, std::span<const PageKey> keys);
  // Gives back what no row from `computed` on sees.
  void slide(std::int64_t computed);
  // From now on no more than one position is not final.
  void decode_only();
  // Tells the runner what changed since the last time. Whoever carries the copies out releases their `from`.
  void announce(std::int32_t slot, StepPlan& plan);
  void release();

 private:
  struct Table {
    std::int64_t end() const { return first + std::ssize(pages); }
    std::int32_t at(std::int64_t index) const { return pages[static_cast<std::size_t>(index - first)]; }

    PagePool* pool;
    std::int32_t group;
    std::int64_t first = 0;  // index of pages.front(): those before it were given back
    std::deque<std::int32_t> pages;
    std::vector<std::int32_t> places;  // of swapped pages, from `first` on
    std::int64_t set_aside = 0;        // part of the pool's
    std::int64_t announced = 0;        // pages before this index are in the runner's table
  };

  std::int64_t pages_for(std::int64_t positions) const;
  bool fits(std::int64_t end) const;
  void fill(std::int64_t end);
  bool take(Table& table);

  const PagePools* pools_;
  std::int64_t most_positions_;
  std::vector<Table> tables_;
  std::vector<PageCopy> copies_;  // not announced yet; their `from` is held
};

}  // namespace kvloom
