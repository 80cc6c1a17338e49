#include "infer/engine/sequence_pages.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvloom {
namespace {

std::int64_t divide_up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

}  // namespace

std::int64_t PagePools::first_seen(const PagePool& pool, std::int64_t position) const {
  return pool.is_windowed() ? std::max<std::int64_t>(0, position - pool.group.reach + 1) / page_size : 0;
}

std::int64_t PagePools::longest_hit(std::span<const PageKey> keys, std::int64_t most, std::int64_t grid) const {
  const auto has = [&](const PagePool& pool, std::int64_t index) {
    return pool.pages.find(keys[static_cast<std::size_t>(index)]).has_value();
  };
  std::int64_t whole = most / page_size;
  for (const PagePool& pool : pools) {
    std::int64_t found = 0;
    while (!pool.is_windowed() && found < whole && has(pool, found)) ++found;
    if (!pool.is_windowed()) whole = found;
  }
  for (std::int64_t hit = whole * page_size / grid * grid; hit > 0; hit -= grid) {
    const bool is_found = std::ranges::all_of(pools, [&](const PagePool& pool) {
      std::int64_t index = hit / page_size;
      while (pool.is_windowed() && index > first_seen(pool, hit) && has(pool, index - 1)) --index;
      return !pool.is_windowed() || index == first_seen(pool, hit);
    });
    if (is_found) return hit;
  }
  return 0;
}

SequencePages::SequencePages(PagePools& pools, std::int64_t most_positions)
    : pools_(&pools), most_positions_(most_positions), tables_(pools.pools.size()) {}

std::int64_t SequencePages::pages_for(std::int64_t positions) const { return divide_up(positions, pools_->page_size); }

std::int64_t SequencePages::most(const PagePool& pool) const {
  const std::int64_t all = pages_for(most_positions_);
  if (!pool.is_windowed()) return all;
  const std::int64_t before = pool.group.reach - 1;
  const std::int64_t at_once = pools_->ahead_is_aligned ? pages_for(before) + pages_for(pools_->ahead)
                                                        : pages_for(before + pools_->ahead - 1) + 1;
  return std::min(all, at_once);
}

// `shared`: by group, pages that the sequence will have and that others hold already.
bool SequencePages::have_room(std::span<const std::int64_t> shared, std::int64_t end, Promise promise) const {
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    const PagePool& pool = this->pool(group);
    const std::int64_t wanted = promise == Promise::kEverything ? most(pool) : pages_for(end);
    if ((pool.is_windowed() ? most(pool) : wanted - shared[group]) > pool.room()) return false;
  }
  return true;
}

void SequencePages::set_aside(Promise promise) {
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    PagePool& pool = this->pool(group);
    Table& table = tables_[group];
    if (pool.is_windowed()) table.promised = most(pool);
    if (!pool.is_windowed() && promise == Promise::kEverything) table.promised = most(pool) - std::ssize(table.pages);
    pool.promised += table.promised;
  }
}

bool SequencePages::take(std::size_t group) {
  PagePool& pool = this->pool(group);
  Table& table = tables_[group];
  if (pool.is_windowed()) {
    if (std::ssize(table.pages) >= table.promised) fail("pages: group {} needs more than {}", group, table.promised);
  } else if (table.promised > 0) {
    --table.promised;
    --pool.promised;
  } else if (pool.room() <= 0) {
    return false;
  }
  table.pages.push_back(pool.pages.take());
  return true;
}

void SequencePages::take_unwindowed(std::int64_t end) {
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    while (!pool(group).is_windowed() && tables_[group].end() < pages_for(end)) take(group);
  }
}

bool SequencePages::admit(std::span<const PageKey> keys, std::int64_t hit, std::int64_t end, Promise promise) {
  std::vector<std::int64_t> shared(tables_.size(), 0);
  std::vector<std::vector<std::int32_t>> found(tables_.size());
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    const PagePool& pool = this->pool(group);
    for (std::int64_t index = pools_->first_seen(pool, hit); index < hit / pools_->page_size; ++index) {
      found[group].push_back(pool.pages.find(keys[static_cast<std::size_t>(index)]).value());
      if (pool.pages.holders(found[group].back()) > 0) ++shared[group];
    }
  }
  if (!have_room(shared, end, promise)) return false;
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    tables_[group].first = pools_->first_seen(pool(group), hit);
    for (const std::int32_t page : found[group]) pool(group).pages.hold(page);
    tables_[group].pages.assign(found[group].begin(), found[group].end());
  }
  set_aside(promise);
  take_unwindowed(end);
  return true;
}

bool SequencePages::swap_in(std::int64_t end, Promise promise, StepPlan& plan) {
  if (!have_room(std::vector<std::int64_t>(tables_.size(), 0), end, promise)) return false;
  set_aside(promise);
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    Table& table = tables_[group];
    for (const std::int32_t place : table.places) {
      take(group);
      plan.swap_in.push_back({static_cast<std::int32_t>(group), table.pages.back(), place});
      pool(group).places.release(place);
    }
    table.places.clear();
  }
  take_unwindowed(end);
  return true;
}

bool SequencePages::fork(const SequencePages& parent, std::int64_t end) {
  const std::int64_t full = end / pools_->page_size;
  std::vector<std::int64_t> shared(tables_.size(), full);
  if (!have_room(shared, end, Promise::kNeeded)) return false;
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    const Table& from = parent.tables_[group];
    Table& table = tables_[group];
    table.first = from.first;
    table.pages.assign(from.pages.begin(), from.pages.begin() + (full - from.first));
    for (const std::int32_t page : table.pages) pool(group).pages.hold(page);
  }
  set_aside(Promise::kNeeded);
  for (std::size_t group = 0; group < tables_.size() && end % pools_->page_size != 0; ++group) {
    const std::int32_t partial = parent.tables_[group].at(full);
    take(group);
    pool(group).pages.hold(partial);
    copies_.push_back({static_cast<std::int32_t>(group), partial, tables_[group].pages.back()});
  }
  return true;
}

bool SequencePages::swap_out(std::int64_t computed, StepPlan& plan) {
  std::int64_t all = 0;
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    const std::int64_t filled = pages_for(computed) - tables_[group].first;
    if (filled > pool(group).places.available()) return false;
    all += filled;
  }
  // A copy that was not announced is made after this plan's pages have left.
  if (all == 0 || !copies_.empty()) return false;
  std::vector<Table> swapped(tables_.size());
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    swapped[group].first = tables_[group].first;
    for (std::int64_t index = tables_[group].first; index < pages_for(computed); ++index) {
      const std::int32_t page = tables_[group].at(index);
      swapped[group].places.push_back(pool(group).places.take());
      plan.swap_out.push_back({static_cast<std::int32_t>(group), page, swapped[group].places.back()});
    }
  }
  release();
  tables_ = std::move(swapped);
  return true;
}

bool SequencePages::cover(std::int64_t end) {
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    while (tables_[group].end() < pages_for(end)) {
      if (!take(group)) return false;
    }
  }
  return true;
}

void SequencePages::publish(std::int64_t begin, std::int64_t end, std::span<const PageKey> keys) {
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    const Table& table = tables_[group];
    for (std::int64_t index = std::max(begin / pools_->page_size, table.first); index < pages_for(end); ++index) {
      pool(group).pages.publish(table.at(index), keys[static_cast<std::size_t>(index)]);
    }
  }
}

void SequencePages::slide(std::int64_t computed) {
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    PagePool& pool = this->pool(group);
    for (Table& table = tables_[group]; table.first < pools_->first_seen(pool, computed); ++table.first) {
      pool.pages.release(table.pages.front());
      table.pages.pop_front();
    }
  }
}

void SequencePages::announce(std::int32_t slot, StepPlan& plan) {
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    Table& table = tables_[group];
    for (std::int64_t index = std::max(table.first, table.announced); index < table.end(); ++index) {
      plan.pages.push_back({slot, static_cast<std::int32_t>(group), static_cast<std::int32_t>(index), table.at(index)});
    }
    table.announced = table.end();
  }
  plan.copies.insert(plan.copies.end(), copies_.begin(), copies_.end());
  copies_.clear();
}

void SequencePages::release() {
  for (const PageCopy& copy : copies_) pools_->pools[static_cast<std::size_t>(copy.group)].pages.release(copy.from);
  copies_.clear();
  for (std::size_t group = 0; group < tables_.size(); ++group) {
    PagePool& pool = this->pool(group);
    Table& table = tables_[group];
    // The last first: of cached pages those at a prompt's start are found by more prompts, and leave later.
    for (; !table.pages.empty(); table.pages.pop_back()) pool.pages.release(table.pages.back());
    for (const std::int32_t place : table.places) pool.places.release(place);
    pool.promised -= table.promised;
    table = {};
  }
}

}  // namespace kvloom
