// Pages of K/V by number: a free list, reference counts, and the prefix cache. Numbers only; the memory behind them is
// core/kv_pages.h.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

namespace kvloom {

// Names what a full page holds: a chain of hashes over the tokens from the sequence's start up to the page's end, the
// model, its map and the numeric options. Pages of equal keys hold equal bits.
struct PageKey {
  std::uint64_t high = 0;
  std::uint64_t low = 0;

  friend bool operator==(const PageKey&, const PageKey&) = default;
};

// The key of the page that follows `before` and holds `tokens`.
PageKey next_page_key(const PageKey& before, std::span<const std::int32_t> tokens);

struct PageKeyHash {
  std::size_t operator()(const PageKey& key) const { return static_cast<std::size_t>(key.low); }
};

struct PageCounts {
  std::int64_t total = 0;
  std::int64_t held = 0;    // somebody refers to them
  std::int64_t cached = 0;  // nobody does, and a later prompt may find them
  std::int64_t free = 0;    // the rest: free + cached + held == total, always
};

// The pages of one pool. A page is free, held by one or more sequences, or cached: held by nobody, and still known by
// its key, until it is needed, the least recently released first.
class PageAllocator {
 public:
  explicit PageAllocator(std::int64_t pages);

  // How many `take` can give: free and cached ones.
  std::int64_t available() const;
  // A page held once, without a key. Takes a free page, else the cached one released longest ago, which forgets its
  // key. Throws Error when none is available.
  std::int32_t take();
  // One more holder of a held page, or a first one of a cached page. Throws Error for a free one.
  void hold(std::int32_t page);
  // One holder less. Without any the page is cached when it has a key, else free. Throws Error when nobody holds it.
  void release(std::int32_t page);

  // The held page's content is complete and found by `key` from now on. Where another page has that key already, that
  // one stays the one that is found, and this one has none. Throws Error when nobody holds the page.
  void publish(std::int32_t page, const PageKey& key);
  // The page with this key, held or cached.
  std::optional<std::int32_t> find(const PageKey& key) const;

  std::int32_t holders(std::int32_t page) const { return pages_.at(static_cast<std::size_t>(page)).holders; }
  PageCounts counts() const;

 private:
  struct Page {
    std::int32_t holders = 0;
    std::optional<PageKey> key;
    std::list<std::int32_t>::iterator place;  // in `cached_`, while cached
  };

  Page& at(std::int32_t page) { return pages_.at(static_cast<std::size_t>(page)); }

  std::vector<Page> pages_;
  std::vector<std::int32_t> free_;
  std::list<std::int32_t> cached_;  // the longest released first
  std::unordered_map<PageKey, std::int32_t, PageKeyHash> by_key_;
  std::int64_t held_ = 0;
};

}  // namespace kvloom
