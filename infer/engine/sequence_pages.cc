#include "infer/engine/sequence_pages.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvloom {

std::int64_t PagePools::first_seen(const PagePool& pool, std::int64_t position) const {
  return pool.is_windowed() ? std::max<std::int64_t>(0, position - pool.group.reach + 1) / page_size : 0;
}

std::int64_t PagePools::longest_hit(std::span<const PageKey> keys, std::int64_t most, std::int64_t grid) const {
  std::int64_t hit = most / grid * grid;
  for (std::size_t group = 0; group < pools.size() && hit > 0;) {
    const PagePool& pool = pools[group++];
    for (std::int64_t index = hit / page_size; index-- > first_seen(pool, hit);) {
      if (pool.pages.find(keys[static_cast<std::size_t>(index)]).has_value()) continue;
      hit = index * page_size / grid * grid;
      group = 0;
      break;
    }
  }
  return hit;
}

SequencePages::SequencePages(PagePools& pools, std::int64_t most_positions)
    : pools_(&pools), most_positions_(most_positions) {
  for (PagePool& pool : pools.pools) {
    tables_.push_back({.pool = &pool, .group = static_cast<std::int32_t>(tables_.size()), .pages = {}, .places = {}});
  }
}

std::int64_t SequencePages::pages_for(std::int64_t positions) const {
  return (positions + pools_->page_size - 1) / pools_->page_size;
}

std::int64_t SequencePages::most(const PagePool& pool, std::int64_t ahead) const {
  const std::int64_t all = pages_for(most_positions_);
  // What is seen and what is not final may begin and end anywhere in a page.
  return pool.is_windowed() ? std::min(all, pages_for(pool.group.reach + ahead - 2) + 1) : all;
}

bool SequencePages::fits(std::int64_t end) const {
  return std::ranges::all_of(tables_, [&](const Table& table) {
    return (table.pool->is_windowed() ? most(*table.pool, pools_->ahead) : pages_for(end) - table.end()) <=
           table.pool->room();
  });
}

void SequencePages::fill(std::int64_t end) {
  for (Table& table : tables_) {
    if (table.pool->is_windowed()) table.pool->set_aside += table.set_aside = most(*table.pool, pools_->ahead);
    while (!table.pool->is_windowed() && table.end() < pages_for(end)) take(table);
  }
}

bool SequencePages::take(Table& table) {
  if (!table.pool->is_windowed() && table.pool->room() == 0) return false;
  if (table.pool->is_windowed() && std::ssize(table.pages) >= table.set_aside) {
    fail("pages: a sequence needs more of group {} than the {} set aside", table.group, table.set_aside);
  }
  table.pages.push_back(table.pool->pages.take());
  return true;
}

bool SequencePages::admit(std::span<const PageKey> keys, std::int64_t hit, std::int64_t end) {
  for (Table& table : tables_) {
    table.first = pools_->first_seen(*table.pool, hit);
    while (table.end() < hit / pools_->page_size) {
      table.pages.push_back(table.pool->pages.find(keys[static_cast<std::size_t>(table.end())]).value());
      table.pool->pages.hold(table.pages.back());
    }
  }
  const bool is_enough = fits(end);
  is_enough ? fill(end) : release();
  return is_enough;
}

bool SequencePages::fork(const SequencePages& parent, std::int64_t end) {
  const std::int64_t full = end / pools_->page_size;
  for (Table& table : tables_) {
    const Table& from = parent.tables_[static_cast<std::size_t>(table.group)];
    table.first = from.first;
    table.pages.assign(from.pages.begin(), from.pages.begin() + (full - from.first));
    for (const std::int32_t page : table.pages) table.pool->pages.hold(page);
  }
  if (!fits(end)) {
    release();
    return false;
  }
  fill(end);
  cover(end);
  for (Table& table : tables_) {
    if (table.end() == full) continue;
    const std::int32_t partial = parent.tables_[static_cast<std::size_t>(table.group)].at(full);
    table.pool->pages.hold(partial);
    copies_.push_back({table.group, partial, table.at(full)});
  }
  return true;
}

bool SequencePages::swap_in(std::int64_t end, StepPlan& plan) {
  if (!fits(end)) return false;
  fill(end);
  for (Table& table : tables_) {
    for (std::size_t index = 0; index < table.places.size(); ++index) {
      if (index == table.pages.size()) take(table);
      plan.swap_in.push_back({table.group, table.pages[index], table.places[index]});
      table.pool->places.release(table.places[index]);
    }
    table.places.clear();
  }
  return true;
}

bool SequencePages::swap_out(std::int64_t computed, StepPlan& plan) {
  // Before its copies are made there is nothing to swap.
  if (computed == 0 || !copies_.empty()) return false;
  for (const Table& table : tables_) {
    if (pages_for(computed) - table.first > table.pool->places.available()) return false;
  }
  std::vector<Table> swapped = tables_;
  for (Table& table : swapped) {
    for (std::int64_t index = table.first; index < pages_for(computed); ++index) {
      table.places.push_back(table.pool->places.take());
      plan.swap_out.push_back({table.group, table.at(index), table.places.back()});
    }
    table.pages.clear();
    table.set_aside = table.announced = 0;
  }
  release();
  tables_ = std::move(swapped);
  return true;
}

bool SequencePages::cover(std::int64_t end) {
  for (Table& table : tables_) {
    while (table.end() < pages_for(end)) {
      if (!take(table)) return false;
    }
  }
  return true;
}

void SequencePages::publish(std::int64_t begin, std::int64_t end, std::span<const PageKey> keys) {
  for (const Table& table : tables_) {
    for (std::int64_t index = std::max(begin / pools_->page_size, table.first); index < pages_for(end); ++index) {
      table.pool->pages.publish(table.at(index), keys[static_cast<std::size_t>(index)]);
    }
  }
}

void SequencePages::slide(std::int64_t computed) {
  for (Table& table : tables_) {
    for (; table.first < pools_->first_seen(*table.pool, computed); ++table.first) {
      table.pool->pages.release(table.pages.front());
      table.pages.pop_front();
    }
  }
}

void SequencePages::decode_only() {
  for (Table& table : tables_) {
    const std::int64_t spare = table.set_aside - std::min(table.set_aside, most(*table.pool, 1));
    table.set_aside -= spare;
    table.pool->set_aside -= spare;
  }
}

void SequencePages::announce(std::int32_t slot, StepPlan& plan) {
  for (Table& table : tables_) {
    for (std::int64_t index = std::max(table.first, table.announced); index < table.end(); ++index) {
      plan.pages.push_back({slot, table.group, static_cast<std::int32_t>(index), table.at(index)});
    }
    table.announced = table.end();
  }
  plan.copies.insert(plan.copies.end(), copies_.begin(), copies_.end());
  copies_.clear();
}

void SequencePages::release() {
  for (const PageCopy& copy : copies_) tables_[static_cast<std::size_t>(copy.group)].pool->pages.release(copy.from);
  copies_.clear();
  for (Table& table : tables_) {
    // The last first: of cached pages those at a prompt's start are found by more prompts, and leave later.
    for (; !table.pages.empty(); table.pages.pop_back()) table.pool->pages.release(table.pages.back());
    for (const std::int32_t place : table.places) table.pool->places.release(place);
    table.places.clear();
    table.pool->set_aside -= table.set_aside;
    table.first = table.set_aside = table.announced = 0;
  }
}

}  // namespace kvloom
