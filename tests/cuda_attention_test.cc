// Attention on a GPU, every way it goes there, against double precision. Run with the kernels compiled for the host as
// well (simt_cuda_attention_test).
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/attention_problem.h"
#include "tests/support/sanitized.h"

namespace kvloom {
namespace {

using test::AttentionAsk;
using test::AttentionProblem;
using test::expect_attention;
using test::kAttentionBound;
using test::Random;
using test::random_attention_shape;
using test::Rows;
using test::widened;
using test::words;

std::vector<AttentionAsk> asks(Random& random) {
  return {
      {.queries = random.integer(2, 70), .head_dim = random.integer(1, 40), .gap = 1},
      {.queries = random.integer(2, 40), .head_dim = 80, .gap = 8, .first_position = random.integer(0, 50)},
      {.queries = random.integer(2, 40), .head_dim = 64, .gap = 1, .beyond = 7},
      {.queries = random.integer(2, 150), .head_dim = 64, .gap = 8},
      {.queries = random.integer(60, 140), .head_dim = 64, .first_position = random.integer(1, 90), .beyond = 40},
      {.queries = random.integer(2, 150), .head_dim = 128, .gap = 8, .beyond = random.integer(0, 3)},
      {.queries = 128, .head_dim = 128},
      {.queries = 20, .head_dim = 256},
  };
}

template <typename T>
class CudaAttention : public test::GpuTest {
 protected:
  void forward(AttentionProblem<T>& problem) { problem.run(this->allocator(), this->queue(), false); }
  void both(AttentionProblem<T>& problem) { problem.run(this->allocator(), this->queue(), true); }

  void expect_both_right(const AttentionShape& shape, Random& random) {
    AttentionProblem<T> problem(shape, random);
    const test::AttentionAnswers want(problem);
    both(problem);
    ASSERT_NO_FATAL_FAILURE(want.expect(problem, 2e-5));
    problem.output.expect_gaps_untouched();
    problem.grad_query.expect_gaps_untouched();
  }
};
TYPED_TEST_SUITE(CudaAttention, test::ComputeTypes);

TYPED_TEST(CudaAttention, AgreesWithDoublePrecisionForwardAndBackward) {
  Random random;
  for (const AttentionAsk& ask : asks(random)) {
    ASSERT_NO_FATAL_FAILURE(this->expect_both_right(random_attention_shape<TypeParam>(random, ask), random));
  }
}

// Warps have 16 rows: a tile that all of them see whole, or all but for one key, comes up at one place of 16.
TYPED_TEST(CudaAttention, QueriesSeeTheirKeysAndNoOtherWhereverTilesEnd) {
  Random random;
  const std::int64_t first = random.integer(0, 30);
  constexpr std::int64_t kPlaces = test::kSanitized ? 3 : 16;
  for (const std::int64_t head_dim : {64, 128}) {
    for (std::int64_t place = first; place < first + kPlaces; ++place) {
      AttentionShape shape = random_attention_shape<TypeParam>(
          random, {.queries = random.integer(33, 80), .head_dim = head_dim, .first_position = place});
      if (random.flip()) shape.window = 0;
      ASSERT_NO_FATAL_FAILURE(this->expect_both_right(shape, random));
    }
  }
}

TYPED_TEST(CudaAttention, OneQueryOverManyKeysAgreesWithDoublePrecision) {
  Random random;
  for (const std::int64_t head_dim : {7, 32, 64, 128, 256}) {
    for (const std::int64_t first : {std::int64_t{0}, random.integer(1, 40), random.integer(600, 900)}) {
      const AttentionAsk ask{.queries = 1,
                             .head_dim = head_dim,
                             .gap = head_dim == 32 ? 1 : 8,
                             .first_position = first,
                             .beyond = random.integer(0, 5)};
      AttentionProblem<TypeParam> problem(random_attention_shape<TypeParam>(random, ask), random);
      if (random.flip()) problem.shape.window = 0;
      const reference::Attention want = problem.expected();
      this->forward(problem);
      const std::string what = words(problem.shape);
      ASSERT_NO_FATAL_FAILURE(expect_attention(problem.output.dense(), want.output, kAttentionBound<TypeParam>, what));
      ASSERT_NO_FATAL_FAILURE(expect_attention(widened(problem.log_sum_exp), want.log_sum_exp, 2e-5, what));
    }
  }
}

// As many splits as there ever are.
TYPED_TEST(CudaAttention, OneHeadOverThousandsOfKeysAgreesWithDoublePrecision) {
  Random random;
  for (const std::int64_t head_dim : {32, 64, 128, 256}) {
    AttentionShape shape = random_attention_shape<TypeParam>(
        random, {.queries = 1, .head_dim = head_dim, .first_position = random.integer(3900, 4500)});
    shape.batch = shape.heads = shape.kv_heads = 1;
    shape.query_stride = shape.output_stride = shape.key_stride = head_dim;
    shape.key_batch_stride = shape.keys * head_dim;
    shape.window = 0;
    AttentionProblem<TypeParam> problem(shape, random);
    const reference::Attention want = problem.expected();
    this->forward(problem);
    ASSERT_NO_FATAL_FAILURE(
        expect_attention(problem.output.dense(), want.output, kAttentionBound<TypeParam>, words(shape)));
    ASSERT_NO_FATAL_FAILURE(expect_attention(widened(problem.log_sum_exp), want.log_sum_exp, 2e-5, words(shape)));
  }
}

TYPED_TEST(CudaAttention, HeadsThatShareAKvHeadAreAllAnswered) {
  Random random;
  for (const std::int64_t group : {1, 2, 3, 4, 6, 8, 12, 16, 17, 40}) {
    AttentionShape shape = random_attention_shape<TypeParam>(
        random, {.queries = 1, .head_dim = random.flip() ? 64 : 128, .first_position = random.integer(0, 300)});
    shape.heads = group * shape.kv_heads;
    shape.query_stride = shape.output_stride = shape.heads * shape.head_dim;
    AttentionProblem<TypeParam> problem(shape, random);
    const reference::Attention want = problem.expected();
    this->forward(problem);
    ASSERT_NO_FATAL_FAILURE(
        expect_attention(problem.output.dense(), want.output, kAttentionBound<TypeParam>, words(shape)));
  }
}

TYPED_TEST(CudaAttention, FirstQueryOfAnUpwardReadIsExactlyZeroAndSoIsItsGradient) {
  Random random;
  for (const std::int64_t head_dim : {40, 64, 128}) {
    for (const std::int64_t queries : {1, 2, 70}) {
      AttentionShape shape = random_attention_shape<TypeParam>(random, {.queries = queries, .head_dim = head_dim});
      shape.visibility = Visibility::kUpward;
      AttentionProblem<TypeParam> problem(shape, random);
      this->both(problem);
      for (std::int64_t b = 0; b < shape.batch; ++b) {
        for (std::int64_t i = 0; i < problem.width(); ++i) {
          ASSERT_EQ(problem.output(b * queries, i), 0.0);
          ASSERT_EQ(problem.grad_query(b * queries, i), 0.0);
        }
        for (std::int64_t h = 0; h < shape.heads; ++h) {
          ASSERT_EQ(problem.log_sum_exp[static_cast<std::size_t>(b * queries * shape.heads + h)],
                    -std::numeric_limits<float>::infinity());
        }
      }
      if (queries > 1) continue;
      for (const float grad : problem.grad_key) ASSERT_EQ(grad, 0.5f);
      for (const float grad : problem.grad_value) ASSERT_EQ(grad, 0.5f);
    }
  }
}

TYPED_TEST(CudaAttention, KeysBeyondTheLastVisibleOneAreNotRead) {
  Random random;
  for (const std::int64_t head_dim : {24, 64, 128}) {
    for (const std::int64_t queries : {1, 5, 100}) {
      AttentionShape shape =
          random_attention_shape<TypeParam>(random, {.queries = queries, .head_dim = head_dim, .beyond = 80});
      AttentionProblem<TypeParam> problem(shape, random);
      const std::int64_t end = queries - (shape.visibility == Visibility::kUpward ? 1 : 0);
      for (std::int64_t b = 0; b < shape.batch; ++b) {
        for (std::int64_t at = b * shape.key_batch_stride + end * shape.key_stride;
             at < (b + 1) * shape.key_batch_stride; ++at) {
          problem.key.data[static_cast<std::size_t>(at)] = Rows<TypeParam>::gap();
          problem.value.data[static_cast<std::size_t>(at)] = Rows<TypeParam>::gap();
        }
      }
      this->both(problem);
      for (const double value : problem.output.dense()) ASSERT_FALSE(std::isnan(value)) << words(shape);
      for (const double value : problem.grad_query.dense()) ASSERT_FALSE(std::isnan(value)) << words(shape);
      for (const float value : problem.grad_key) ASSERT_FALSE(std::isnan(value)) << words(shape);
      for (const float value : problem.grad_value) ASSERT_FALSE(std::isnan(value)) << words(shape);
    }
  }
}

TYPED_TEST(CudaAttention, HasEqualBitsEveryTime) {
  Random random;
  constexpr std::int64_t kFirst = test::kSanitized ? 20 : 200;
  for (const std::int64_t head_dim : {40, 64, 128}) {
    for (const std::int64_t queries : {1, 90}) {
      const AttentionShape shape = random_attention_shape<TypeParam>(
          random, {.queries = queries, .head_dim = head_dim, .first_position = kFirst});
      AttentionProblem<TypeParam> one(shape, random);
      AttentionProblem<TypeParam> other = one;
      this->both(one);
      this->both(other);
      EXPECT_EQ(one.output.dense(), other.output.dense());
      EXPECT_EQ(one.grad_query.dense(), other.grad_query.dense());
      EXPECT_TRUE(test::equal_bits(one.grad_key, other.grad_key));
      EXPECT_TRUE(test::equal_bits(one.grad_value, other.grad_value));
    }
  }
}

}  // namespace
}  // namespace kvloom
