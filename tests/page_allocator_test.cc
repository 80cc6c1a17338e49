// The page allocator against a model that keeps lists: random operations, each followed by a look at everything.
#include "infer/engine/page_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "kernels/error.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

using test::Random;

PageKey key_of(std::int64_t number) {
  const std::vector<std::int32_t> token{static_cast<std::int32_t>(number)};
  return next_page_key({}, token);
}

// What an allocator of `total` pages must do, written the slow way.
struct Model {
  std::int64_t total;
  std::map<std::int32_t, int> holders;        // of held pages
  std::map<std::int32_t, std::int64_t> keys;  // of held and cached pages
  std::vector<std::int32_t> cached;           // the longest released first

  std::optional<std::int32_t> find(std::int64_t key) const {
    for (const auto& [page, its] : keys) {
      if (its == key) return page;
    }
    return std::nullopt;
  }
  void release(std::int32_t page) {
    if (--holders.at(page) > 0) return;
    holders.erase(page);
    if (keys.contains(page)) cached.push_back(page);
  }
  // A taken page must be a free one, or the cached one released longest ago.
  void take(std::int32_t page) {
    const bool was_known = holders.contains(page) || std::ranges::count(cached, page) > 0;
    if (std::ssize(holders) + std::ssize(cached) < total) {
      ASSERT_FALSE(was_known) << "page " << page << " was in use, and others were free";
    } else {
      ASSERT_EQ(page, cached.front());
      cached.erase(cached.begin());
      keys.erase(page);
    }
    holders[page] = 1;
  }
};

std::int32_t any_held(Random& random, const Model& model) {
  return std::next(model.holders.begin(), random.integer(0, std::ssize(model.holders) - 1))->first;
}

void operate(Random& random, PageAllocator& pages, Model& model, std::int64_t most_keys) {
  const std::int64_t choice = random.integer(0, 9);
  const std::int64_t key = random.integer(0, most_keys);
  if (choice < 3) {
    if (pages.available() > 0) return model.take(pages.take());
    EXPECT_THROW(pages.take(), Error);
  } else if (choice < 5) {
    const std::optional<std::int32_t> page = pages.find(key_of(key));
    if (!page.has_value()) return;
    pages.hold(*page);
    ++model.holders[*page];
    std::erase(model.cached, *page);
  } else if (!model.holders.empty()) {
    const std::int32_t page = any_held(random, model);
    if (choice < 7) {
      const bool is_other = model.keys.contains(page) && model.keys.at(page) != key;
      if (is_other) {
        EXPECT_THROW(pages.publish(page, key_of(key)), Error);
        return;
      }
      pages.publish(page, key_of(key));
      if (!model.find(key).has_value()) model.keys[page] = key;
    } else {
      pages.release(page);
      model.release(page);
    }
  }
}

void expect_equal(const PageAllocator& pages, const Model& model, std::int64_t key) {
  const PageCounts counts = pages.counts();
  ASSERT_EQ(counts.total, model.total);
  ASSERT_EQ(counts.held, std::ssize(model.holders));
  ASSERT_EQ(counts.cached, std::ssize(model.cached));
  ASSERT_EQ(counts.free + counts.cached + counts.held, counts.total);
  ASSERT_EQ(pages.available(), counts.free + counts.cached);
  ASSERT_EQ(pages.find(key_of(key)), model.find(key));
}

TEST(PageAllocator, RandomOperationsDoAsAModelOfListsDoes) {
  Random random;
  for (int life = 0; life < 500; ++life) {
    const std::int64_t total = random.integer(1, 24);
    const std::int64_t most_keys = random.integer(0, 30);
    PageAllocator pages(total);
    Model model{total, {}, {}, {}};
    for (int operation = 0; operation < 1000; ++operation) {
      operate(random, pages, model, most_keys);
      expect_equal(pages, model, random.integer(0, most_keys));
      if (HasFatalFailure()) return;
    }
    for (std::int32_t page = 0; page < total; ++page) {
      ASSERT_EQ(pages.holders(page), model.holders.contains(page) ? model.holders.at(page) : 0);
    }
  }
}

TEST(PageAllocator, OnlyHeldPagesAreReleasedAndPublishedAndFreeOnesAreNotHeld) {
  PageAllocator pages(2);
  EXPECT_THROW(pages.hold(0), Error);
  EXPECT_THROW(pages.release(0), Error);
  EXPECT_THROW(pages.publish(0, key_of(1)), Error);
  const std::int32_t page = pages.take();
  pages.publish(page, key_of(1));
  EXPECT_THROW(pages.publish(page, key_of(2)), Error);
  pages.release(page);
  EXPECT_THROW(pages.release(page), Error);
  EXPECT_THROW(pages.publish(page, key_of(1)), Error);
  EXPECT_EQ(pages.find(key_of(1)), page);
}

TEST(PageAllocator, AKeyNamesThePagesBeforeItAndItsTokens) {
  Random random;
  const std::vector<std::int32_t> tokens = random.tokens(32, 1000);
  const PageKey key = next_page_key(key_of(1), tokens);
  EXPECT_EQ(next_page_key(key_of(1), tokens), key);
  EXPECT_FALSE(next_page_key(key_of(2), tokens) == key);
  for (std::size_t index = 0; index < tokens.size(); ++index) {
    std::vector<std::int32_t> changed = tokens;
    ++changed[index];
    EXPECT_FALSE(next_page_key(key_of(1), changed) == key);
  }
}

}  // namespace
}  // namespace kvloom
