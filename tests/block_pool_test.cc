// The caching allocator's logic, over plain host memory.
#include "core/block_pool.h"
#include "core/out_of_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <vector>

#include "kernels/error.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::size_t kMebibyte = 1U << 20;

class HostSegments final : public SegmentSource {
 public:
  explicit HostSegments(std::size_t limit) : limit_(limit) {}
  ~HostSegments() override { EXPECT_EQ(taken_, 0) << "segments were not given back"; }

  void* take(std::size_t bytes) override {
    if (taken_ + bytes > limit_) return nullptr;
    ++calls_;
    taken_ += bytes;
    void* segment = std::aligned_alloc(512, bytes);
    sizes_[segment] = bytes;
    return segment;
  }
  void give_back(void* segment) noexcept override {
    taken_ -= sizes_.at(segment);
    std::free(segment);
  }
  std::size_t free_bytes() override { return limit_ - taken_; }

  int calls() const { return calls_; }
  std::size_t taken() const { return taken_; }

 private:
  std::size_t limit_;
  std::size_t taken_ = 0;
  int calls_ = 0;
  std::map<void*, std::size_t> sizes_;
};

TEST(BlockPool, HeldBlocksNeverOverlapAndCountsAddUp) {
  test::Random random;
  HostSegments source(200 * kMebibyte);
  BlockPool pool("host", source);
  struct Held {
    unsigned char* data;
    std::size_t bytes;
    unsigned char mark;
  };
  std::vector<Held> held;
  std::size_t asked = 0;
  for (int step = 0; step < 2000; ++step) {
    if (held.size() > 20 || (!held.empty() && random.flip())) {
      const auto victim = static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(held.size()) - 1));
      const Held block = held[victim];
      for (const std::size_t at : {std::size_t{0}, block.bytes / 2, block.bytes - 1}) {
        ASSERT_EQ(block.data[at], block.mark);
      }
      pool.release(block.data);
      asked -= block.bytes;
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(victim));
    } else {
      const auto bytes = static_cast<std::size_t>(random.integer(1, random.flip() ? 5000 : 4 * 1024 * 1024));
      auto* data = static_cast<unsigned char*>(pool.allocate(bytes));
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(data) % 512, 0);
      const auto mark = static_cast<unsigned char>(step);
      for (const std::size_t at : {std::size_t{0}, bytes / 2, bytes - 1}) data[at] = mark;
      held.push_back({data, bytes, mark});
      asked += bytes;
    }
    ASSERT_GE(pool.statistics().held_bytes, asked);
    ASSERT_EQ(pool.statistics().held_bytes + pool.statistics().cached_bytes, pool.taken_bytes());
    ASSERT_EQ(pool.taken_bytes(), source.taken());
    ASSERT_LE(pool.statistics().held_bytes, pool.statistics().peak_bytes);
    ASSERT_LE(pool.taken_bytes(), pool.peak_taken_bytes());
  }
  for (const Held& block : held) pool.release(block.data);
  pool.trim();
  EXPECT_EQ(source.taken(), 0) << "freed neighbours were not joined";
}

TEST(BlockPool, ASecondRoundOfTheSameSizesTakesNothingNew) {
  test::Random random;
  HostSegments source(1024 * kMebibyte);
  BlockPool pool("host", source);
  std::vector<std::size_t> sizes(50);
  for (std::size_t& size : sizes) size = static_cast<std::size_t>(random.integer(1, 6 * 1024 * 1024));
  const auto round = [&] {
    std::vector<void*> blocks;
    for (const std::size_t size : sizes) blocks.push_back(pool.allocate(size));
    for (void* block : blocks) pool.release(block);
  };
  round();
  const int calls = source.calls();
  const std::size_t peak = pool.statistics().peak_bytes;
  for (int repeat = 0; repeat < 3; ++repeat) round();
  EXPECT_EQ(source.calls(), calls);
  EXPECT_EQ(pool.statistics().peak_bytes, peak);
}

TEST(BlockPool, CachedSegmentsGoBackBeforeMemoryRunsOut) {
  HostSegments source(64 * kMebibyte);
  BlockPool pool("host", source);
  pool.release(pool.allocate(40 * kMebibyte));
  void* larger = pool.allocate(50 * kMebibyte);
  EXPECT_EQ(source.taken(), 50 * kMebibyte);
  pool.release(larger);
}

TEST(BlockPool, SegmentsThatAreToStayDoAlsoWhenMemoryRunsOut) {
  HostSegments source(64 * kMebibyte);
  BlockPool pool("graphs", source, FreeSegments::kKept);
  void* first = pool.allocate(40 * kMebibyte);
  EXPECT_TRUE(pool.has(first));
  pool.release(first);
  EXPECT_FALSE(pool.has(first));
  EXPECT_THROW(pool.allocate(50 * kMebibyte), Error);
  EXPECT_EQ(source.taken(), 40 * kMebibyte);
  EXPECT_EQ(pool.allocate(30 * kMebibyte), first);
  EXPECT_FALSE(pool.has(static_cast<std::byte*>(first) + 512));
  pool.release(first);
}

TEST(BlockPool, RunningOutSaysWhatWasAskedWhatIsHeldAndWhatToLower) {
  HostSegments source(64 * kMebibyte);
  BlockPool pool("cuda:3", source);
  EXPECT_EQ(pool.set_purpose("weights"), "other");
  void* weights = pool.allocate(30 * kMebibyte);
  pool.set_purpose("kept activations");
  void* kept = pool.allocate(12 * kMebibyte);
  try {
    pool.allocate(40 * kMebibyte);
    FAIL() << "40 MiB of 22 were given";
  } catch (const OutOfMemory& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("cuda:3: out of memory asking for 40.0 MiB for kept activations"),
                                    HasSubstr("42.0 MiB held (weights 30.0 MiB, kept activations 12.0 MiB)"),
                                    HasSubstr("22.0 MiB free"), HasSubstr("lower what is worked on")));
  }
  EXPECT_EQ(pool.statistics().held_bytes, 42 * kMebibyte);
  pool.release(weights);
  pool.release(kept);
}

}  // namespace
}  // namespace kvloom
