// Attention of sequences at positions of their own, also in pages, on a GPU, every way it goes there, against double
// precision. Run with the kernels compiled for the host as well (simt_cuda_ragged_attention_test).
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/support/gpu.h"
#include "tests/support/ragged_attention.h"
#include "tests/support/sanitized.h"

namespace kvloom {
namespace {

using test::Mirror;
using test::RaggedAsk;
using test::RaggedAttention;
using test::Random;

template <typename T>
class CudaRaggedAttention : public test::GpuTest {
 protected:
  static constexpr double kBound = std::is_same_v<T, float> ? 2e-5 : 2e-2;

  void run(RaggedAttention<T>& problem) {
    const Mirror mirror(allocator(), problem.starts, problem.query.data, problem.key, problem.value,
                        problem.output.data, problem.log_sum_exp);
    cuda::run(problem.op(mirror), queue());
    take(problem, mirror);
  }
  void run_paged(RaggedAttention<T>& problem, std::int64_t key_batch_stride = 0) {
    const Mirror mirror(allocator(), problem.starts, problem.query.data, problem.key, problem.value, problem.key_pool,
                        problem.value_pool, problem.pages->entries(), problem.output.data, problem.log_sum_exp);
    AttentionForward op = problem.paged_op(mirror);
    op.shape.key_batch_stride = key_batch_stride;
    cuda::run(op, queue());
    take(problem, mirror);
  }

  // In pages where these have a size.
  void expect_right(RaggedAttention<T>& problem, std::int64_t page_size, Random& random) {
    if (page_size > 0) problem.put_in_pages(page_size, random);
    const reference::Attention want = problem.expected();
    page_size > 0 ? run_paged(problem) : run(problem);
    test::expect_answers(problem, want, kBound);
    problem.output.expect_gaps_untouched();
  }

 private:
  static void take(RaggedAttention<T>& problem, const Mirror& mirror) {
    problem.output.data = mirror.now(problem.output.data);
    problem.log_sum_exp = mirror.now(problem.log_sum_exp);
  }
};
TYPED_TEST_SUITE(CudaRaggedAttention, test::ComputeTypes);

// One query goes by splits of the keys, bf16 with head_dim 64 and 128 by tensor cores, the rest by plain arithmetic.
std::vector<RaggedAsk> asks(Random& random) {
  std::vector<RaggedAsk> all;
  for (const std::int64_t group : {1, 2, 3, 4, 8, 12}) {
    for (const std::int64_t head_dim : {40, 64, 128}) {
      all.push_back({1, head_dim, random.integer(1, 700), group, 8 * random.integer(0, 1)});
    }
    all.push_back({random.integer(2, 100), random.flip() ? 64 : 128, random.integer(1, 150), group, 8});
    all.push_back({random.integer(2, 40), random.integer(1, 40), random.integer(1, 100), group, 1});
  }
  return all;
}

// One query a sequence, of which sequence b sees lengths[b] keys, or `window` of them where that is less.
struct DecodeAsk {
  std::int64_t group;
  std::int64_t head_dim;
  std::vector<std::int64_t> lengths;
  std::int64_t window = 0;
};

template <typename T>
RaggedAttention<T> decode_problem(Random& random, const DecodeAsk& ask) {
  const std::int64_t longest = *std::max_element(ask.lengths.begin(), ask.lengths.end());
  AttentionShape shape =
      test::random_ragged_shape<T>(random, {1, ask.head_dim, longest, ask.group, 8 * random.integer(0, 1)});
  shape.batch = std::ssize(ask.lengths);
  shape.window = ask.window;
  const std::int64_t itself = shape.visibility == Visibility::kUpward ? 0 : 1;
  std::vector<std::int32_t> starts;
  for (const std::int64_t length : ask.lengths) {
    starts.push_back(static_cast<std::int32_t>(length - itself - shape.first_position));
  }
  return {shape, starts, random};
}

constexpr std::int64_t kGroups[] = {1, 2, 3, 6, 8, 12, 16, 17};

TYPED_TEST(CudaRaggedAttention, OneQuerySeesAllItsKeysAndNoOtherWhereverTilesEnd) {
  Random random;
  for (const std::int64_t group : kGroups) {
    for (const std::int64_t head_dim : {64, 128}) {
      for (const std::int64_t page_size : {0, 16, 256}) {
        if (test::kSanitized && random.flip()) continue;
        DecodeAsk ask{group, head_dim, {0, 1, 15, 16, 17, 63, 64, 65, 127, 129, random.integer(130, 300)}};
        if (random.flip()) ask.window = ask.lengths[static_cast<std::size_t>(random.integer(1, 10))];
        std::shuffle(ask.lengths.begin(), ask.lengths.end(), random.engine());
        auto problem = decode_problem<TypeParam>(random, ask);
        ASSERT_NO_FATAL_FAILURE(this->expect_right(problem, page_size, random));
      }
    }
  }
}

// Alone a sequence's keys are split as far as they are worth it.
TYPED_TEST(CudaRaggedAttention, OneQuerySeesAllItsKeysAndNoOtherWhereverSplitsEnd) {
  Random random;
  for (const std::int64_t group : kGroups) {
    for (const std::int64_t head_dim : {64, 128}) {
      for (const std::int64_t length : {std::int64_t{128}, std::int64_t{191}, std::int64_t{192}, std::int64_t{193},
                                        random.integer(300, 700), std::int64_t{1025}}) {
        if (random.flip()) continue;
        DecodeAsk ask{group, head_dim, {length}};
        if (random.flip()) ask.window = random.integer(1, length);
        auto problem = decode_problem<TypeParam>(random, ask);
        const std::int64_t page_sizes[] = {0, 16, 256};
        ASSERT_NO_FATAL_FAILURE(this->expect_right(problem, page_sizes[random.integer(0, 2)], random));
      }
    }
  }
}

TYPED_TEST(CudaRaggedAttention, EachSequenceStandsWhereItsStartSays) {
  Random random;
  for (const RaggedAsk& ask : asks(random)) {
    RaggedAttention<TypeParam> problem(test::random_ragged_shape<TypeParam>(random, ask), ask.furthest, random);
    const reference::Attention want = problem.expected();
    this->run(problem);
    ASSERT_NO_FATAL_FAILURE(test::expect_answers(problem, want, this->kBound));
  }
}

// As when a step was captured for all that a cache may hold: its bits are those of a step made for the keys there are.
TYPED_TEST(CudaRaggedAttention, ManyMoreKeysThatMightBeChangeNothing) {
  Random random;
  for (const std::int64_t furthest : {20, 300, 900}) {
    AttentionShape shape =
        test::random_ragged_shape<TypeParam>(random, {1, 64, furthest, kGroups[random.integer(0, 7)]});
    shape.keys = 8000;
    shape.key_batch_stride = shape.keys * shape.key_stride;
    RaggedAttention<TypeParam> problem(shape, furthest, random);
    RaggedAttention<TypeParam> exact = problem;
    exact.shape.keys = 1;
    for (std::int64_t b = 0; b < shape.batch; ++b) exact.shape.keys = std::max(exact.shape.keys, exact.seen_end(b));
    this->run(problem);
    this->run(exact);
    ASSERT_EQ(problem.output.dense(), exact.output.dense()) << exact.words();
    ASSERT_EQ(problem.log_sum_exp, exact.log_sum_exp) << exact.words();
  }
}

TYPED_TEST(CudaRaggedAttention, FewKeysOfManyThatMightBeAreFound) {
  Random random;
  for (const std::int64_t most : {500, 8000}) {
    AttentionShape shape = test::random_ragged_shape<TypeParam>(random, {1, 64, 300, 4});
    shape.keys = most;
    shape.key_batch_stride = most * shape.key_stride;
    RaggedAttention<TypeParam> problem(shape, 300, random);
    const reference::Attention want = problem.expected();
    this->run(problem);
    ASSERT_NO_FATAL_FAILURE(test::expect_answers(problem, want, this->kBound));
  }
}

TYPED_TEST(CudaRaggedAttention, PagesHoldWhatOneRowAfterAnotherHoldsBitForBit) {
  Random random;
  for (const std::int64_t page_size : {16, 32, 128, 256}) {
    for (const RaggedAsk& ask : asks(random)) {
      if (random.integer(0, 3) > 0) continue;
      RaggedAttention<TypeParam> problem(test::random_ragged_shape<TypeParam>(random, ask), ask.furthest, random);
      problem.put_in_pages(page_size, random);
      RaggedAttention<TypeParam> paged = problem;
      this->run(problem);
      this->run_paged(paged);
      ASSERT_EQ(paged.output.dense(), problem.output.dense()) << paged.words();
      ASSERT_EQ(paged.log_sum_exp, problem.log_sum_exp) << paged.words();
    }
  }
}

// Not the kernel either, as an odd one does where rows lie one after another.
TYPED_TEST(CudaRaggedAttention, ABatchStrideChoosesNothingWhereThereArePages) {
  Random random;
  for (const std::int64_t queries : {1, 30}) {
    RaggedAttention<TypeParam> problem(
        test::random_ragged_shape<TypeParam>(random, {queries, 64, random.integer(200, 500), 2}), 200, random);
    problem.put_in_pages(16, random);
    RaggedAttention<TypeParam> other = problem;
    this->run_paged(problem);
    this->run_paged(other, 2 * random.integer(0, 1000) + 1);
    ASSERT_EQ(other.output.dense(), problem.output.dense()) << other.words();
    ASSERT_EQ(other.log_sum_exp, problem.log_sum_exp) << other.words();
  }
}

TYPED_TEST(CudaRaggedAttention, PagesAgreeWithDoublePrecision) {
  Random random;
  for (const std::int64_t page_size : {16, 64, 256}) {
    for (const RaggedAsk& ask : {RaggedAsk{1, 64, 600, 4}, RaggedAsk{70, 128, 90, 2}, RaggedAsk{9, 20, 40, 1}}) {
      RaggedAttention<TypeParam> problem(test::random_ragged_shape<TypeParam>(random, ask), ask.furthest, random);
      problem.put_in_pages(page_size, random);
      const reference::Attention want = problem.expected();
      this->run_paged(problem);
      ASSERT_NO_FATAL_FAILURE(test::expect_answers(problem, want, this->kBound));
    }
  }
}

}  // namespace
}  // namespace kvloom
