// What one step of the engine does, decided by the scheduler on rank 0 and carried out by every rank alike.
#pragma once

#include <cstdint>
#include <vector>

#include "core/step_rows.h"

namespace kvloom {

// From now on positions [index * page_size, ...) of the slot's sequence lie in `page` of the group's pools.
struct PageAssignment {
  std::int32_t slot;
  std::int32_t group;
  std::int32_t index;
  std::int32_t page;

  friend bool operator==(const PageAssignment&, const PageAssignment&) = default;
};

// All pools of a group: page `to` = page `from`.
struct PageCopy {
  std::int32_t group;
  std::int32_t from;
  std::int32_t to;

  friend bool operator==(const PageCopy&, const PageCopy&) = default;
};

// Between a page of a group and a place of the host's swap space for that group.
struct PageSwap {
  std::int32_t group;
  std::int32_t page;
  std::int32_t place;

  friend bool operator==(const PageSwap&, const PageSwap&) = default;
};

// Carried out in the order of the members: what is swapped out is read before its pages are written anew.
struct StepPlan {
  std::int64_t step = 0;
  std::int64_t finished = 0;  // steps up to this one are over on every rank: what they sent has left
  std::vector<PageSwap> swap_out;
  std::vector<PageSwap> swap_in;
  std::vector<PageCopy> copies;
  std::vector<PageAssignment> pages;
  StepRows rows;

  bool is_empty() const {
    return swap_out.empty() && swap_in.empty() && copies.empty() && pages.empty() && rows.runs.empty();
  }

  friend bool operator==(const StepPlan&, const StepPlan&) = default;
};

}  // namespace kvloom
