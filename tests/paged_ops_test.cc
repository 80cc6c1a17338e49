// Pages through core/ops: what a chunk of a prompt and then single tokens leave there and read there.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "core/ops.h"
#include "tests/support/kernel_rows.h"
#include "tests/support/random_pages.h"

namespace kvloom {
namespace {

using test::Random;

constexpr std::int64_t kHeads = 4;
constexpr std::int64_t kKvHeads = 2;
constexpr std::int64_t kHeadDim = 32;
constexpr std::int64_t kWidth = kHeads * kHeadDim;
constexpr std::int64_t kKvWidth = kKvHeads * kHeadDim;
constexpr std::int64_t kSequences = 3;
constexpr std::int64_t kCapacity = 100;
constexpr std::int64_t kPageSize = 16;

// Caches and pools of the same sequences, and a table of angles.
class PagedOps : public ::testing::Test {
 protected:
  Tensor noise(Shape shape) {
    const auto count = static_cast<std::size_t>(element_count(shape));
    return Tensor::of<float>(allocator_, std::move(shape), random_.normals(count));
  }
  Tensor numbers(Shape shape, const std::vector<std::int32_t>& values) {
    return Tensor::of<std::int32_t>(allocator_, std::move(shape), values);
  }
  // Pages for all of every sequence.
  Tensor table_of_all() {
    for (std::int64_t b = 0; b < kSequences; ++b) {
      for (std::int64_t j = 0; j < kCapacity; ++j) pages_.row(b, j);
    }
    return numbers({kSequences, std::ssize(pages_.entries()) / kSequences}, pages_.entries());
  }
  Tensor pool() { return noise({pages_.rows() / kPageSize, kPageSize, kKvWidth}); }

  // Splits `joint` [rows, heads and twice KV heads], K and V to `place`, into queries.
  Tensor split(const Tensor& joint, ops::RowPositions rows, RowPlace place, Tensor& key, Tensor& value,
               const Tensor* table) {
    Tensor query = Tensor::empty(allocator_, {joint.size(0), kWidth}, DType::kF32);
    const std::array<ops::HeadsPart, 3> parts = {ops::HeadsPart{joint, 0, query},
                                                 {joint, kWidth, key, place},
                                                 {joint, kWidth + kKvWidth, value, place, HeadTurn::kAsIs}};
    ops::rope_split(parts, cosine_, sine_, rows, table);
    return query;
  }
  // The same, and what attention makes of the queries then.
  std::vector<float> attend(const Tensor& joint, ops::RowPositions rows, RowPlace place, Tensor& key, Tensor& value,
                            const Tensor* table) {
    const Tensor query = split(joint, rows, place, key, value, table);
    Tensor output = Tensor::empty(allocator_, query.shape(), DType::kF32);
    AttentionForward op{.shape = {.batch = kSequences,
                                  .queries = rows.positions,
                                  .keys = kCapacity,
                                  .heads = kHeads,
                                  .kv_heads = kKvHeads,
                                  .head_dim = kHeadDim,
                                  .scale = 0.2f},
                        .query = query.data(),
                        .key = key.data(),
                        .value = value.data(),
                        .output = output.data(),
                        .log_sum_exp = nullptr,
                        .starts = rows.starts->as<std::int32_t>().data()};
    if (table != nullptr) op.page_table = ops::page_table_of(*table, key);
    ops::run(output.device(), op);
    return output.values<float>();
  }

  Random random_;
  CachingCpuAllocator allocator_;
  test::RandomPages pages_{random_, kSequences, kCapacity, kPageSize};
  Tensor cosine_ = noise({kCapacity, kHeadDim / 2});
  Tensor sine_ = noise({kCapacity, kHeadDim / 2});
};

TEST_F(PagedOps, ChunksAndThenTokensThroughPagesAreThoseThroughCaches) {
  const Tensor table = table_of_all();
  Tensor key = noise({kSequences, kCapacity, kKvWidth});
  Tensor value = noise({kSequences, kCapacity, kKvWidth});
  Tensor key_pool = pool();
  Tensor value_pool = pool();
  std::vector<std::int32_t> starts(kSequences, 0);
  for (const std::int64_t positions : {30, 11, 1, 1, 20, 1}) {
    const Tensor stands = numbers({kSequences}, starts);
    const ops::RowPositions rows{positions, 0, &stands};
    const Tensor joint = noise({kSequences * positions, kWidth + 2 * kKvWidth});
    const auto cached = attend(joint, rows, RowPlace::kAtPosition, key, value, nullptr);
    const auto paged = attend(joint, rows, RowPlace::kAtPage, key_pool, value_pool, &table);
    ASSERT_EQ(paged, cached) << "after " << starts[0];
    // Some take what they were given, some give it up and go on from before.
    for (std::int32_t& start : starts) start += static_cast<std::int32_t>(random_.integer(0, positions));
  }
}

TEST_F(PagedOps, TablesThatDoNotFitAreRefused) {
  const Tensor table = table_of_all();
  Tensor key = pool();
  Tensor value = pool();
  const Tensor stands = numbers({kSequences}, {0, 0, 0});
  const Tensor joint = noise({kSequences, kWidth + 2 * kKvWidth});
  const auto attend_with = [&](const ops::RowPositions& rows, const Tensor* pages) {
    return attend(joint, rows, RowPlace::kAtPage, key, value, pages);
  };
  EXPECT_NO_THROW(attend_with({1, 0, &stands}, &table));
  EXPECT_THROW(attend_with({1, 0, &stands}, nullptr), Error);
  const Tensor short_table = table.rows(0, kSequences - 1);
  EXPECT_THROW(attend_with({1, 0, &stands}, &short_table), Error);
  const Tensor of_floats = noise(table.shape());
  EXPECT_THROW(attend_with({1, 0, &stands}, &of_floats), Error);
  const Tensor short_stands = stands.rows(0, kSequences - 1);
  EXPECT_THROW(attend_with({1, 0, &short_stands}, &table), Error);
  Tensor other_pool = noise({9, 2 * kPageSize, kKvWidth});
  EXPECT_THROW(attend(joint, {1, 0, &stands}, RowPlace::kAtPage, key, other_pool, &table), Error);
}

// Where starts lie on the device the host cannot know; where there are none it refuses before anything is written.
TEST_F(PagedOps, TablesWithTooFewColumnsAreRefusedBeforeAnyPageIsWritten) {
  table_of_all();
  std::vector<std::int32_t> first_pages;
  for (std::int64_t b = 0; b < kSequences; ++b) {
    first_pages.push_back(static_cast<std::int32_t>(pages_.row(b, 0) / kPageSize));
  }
  const Tensor table = numbers({kSequences, 1}, first_pages);
  Tensor key = pool();
  Tensor value = pool();
  const std::vector<float> keys = key.values<float>();
  const auto write = [&](std::int64_t positions, std::int64_t first) {
    const Tensor joint = noise({kSequences * positions, kWidth + 2 * kKvWidth});
    split(joint, {positions, first}, RowPlace::kAtPage, key, value, &table);
  };
  for (const std::int64_t first : {kPageSize, kPageSize + 5, kPageSize - 2}) {
    EXPECT_THROW(write(3, first), Error) << first;
    EXPECT_EQ(key.values<float>(), keys) << first;
  }
  EXPECT_NO_THROW(write(3, kPageSize - 3));
  EXPECT_NE(key.values<float>(), keys);
}

}  // namespace
}  // namespace kvloom
