// Attention on a GPU, every way it goes there, against double precision. Run with the kernels compiled for the host as
// well (simt_cuda_attention_test).
#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "kernels/attention.h"
#include "kernels/attention_choice.h"
#include "tests/support/gpu.h"
#include "tests/support/kernel_rows.h"
#include "tests/support/reference_attention.h"
#include "tests/support/sanitized.h"

namespace kvloom {
namespace {

using reference::Doubles;
using test::Mirror;
using test::Random;
using test::Rows;

template <typename T>
constexpr double kBound = std::is_same_v<T, float> ? 2e-5 : 2e-2;

// What decides the way: tensor cores take head_dim 64 and 128 of bf16 at even places, decode one query.
struct Ask {
  std::int64_t queries;
  std::int64_t head_dim;
  std::int64_t gap = 0;  // between rows, times a number of up to 2
  std::int64_t first_position = 0;
  std::int64_t beyond = 0;  // keys past the last visible one
};

template <typename T>
AttentionShape random_shape(Random& random, const Ask& ask) {
  AttentionShape shape{};
  shape.batch = random.integer(1, 2);
  shape.queries = ask.queries;
  shape.first_position = ask.first_position;
  shape.keys = ask.first_position + ask.queries + ask.beyond;
  shape.kv_heads = random.integer(1, 2);
  shape.heads = shape.kv_heads * (random.flip() ? 2 : random.integer(1, 4));
  shape.head_dim = ask.head_dim;
  shape.visibility = random.flip() ? Visibility::kUpward : Visibility::kDownward;
  shape.window = random.flip() ? random.integer(1, 2 * ask.queries + 20) : 0;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  shape.query_stride = shape.heads * shape.head_dim + ask.gap * random.integer(0, 2);
  shape.output_stride = shape.heads * shape.head_dim + ask.gap * random.integer(0, 2);
  shape.key_stride = shape.kv_heads * shape.head_dim + ask.gap * random.integer(0, 2);
  shape.key_batch_stride = shape.keys * shape.key_stride + ask.gap;
  shape.dtype = DTypeOf<T>::value;
  return shape;
}

template <typename T>
struct Problem {
  Problem(const AttentionShape& given, Random& random)
      : shape(given),
        query(rows(), width(), shape.query_stride),
        key(shape.batch * shape.key_batch_stride / shape.key_stride + 2, kv_width(), shape.key_stride),
        value(key),
        output(rows(), width(), shape.output_stride),
        grad_output(output),
        grad_query(query),
        log_sum_exp(test::area(rows(), shape.heads), Rows<float>::gap()),
        grad_key(test::area(shape.batch * shape.keys, kv_width()), 0.5f),
        grad_value(grad_key) {
    query.randomise(random);
    grad_output.randomise(random);
    for (T& x : key.data) x = T(static_cast<float>(random.normal()));
    for (T& x : value.data) x = T(static_cast<float>(random.normal()));
  }
  std::int64_t rows() const { return shape.batch * shape.queries; }
  std::int64_t width() const { return shape.heads * shape.head_dim; }
  std::int64_t kv_width() const { return shape.kv_heads * shape.head_dim; }

  Doubles dense_keys(const Rows<T>& from) const {
    Doubles values;
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t j = 0; j < shape.keys; ++j) {
        for (std::int64_t i = 0; i < kv_width(); ++i) {
          values.push_back(test::to_double(
              from.data[static_cast<std::size_t>(b * shape.key_batch_stride + j * shape.key_stride + i)]));
        }
      }
    }
    return values;
  }
  reference::Attention expected() const {
    return reference::attend(shape, query.dense(), dense_keys(key), dense_keys(value));
  }

  // Takes forward's and, when asked, backward's answers from the device.
  void run(Allocator& allocator, cuda::Queue& queue, bool backward) {
    const Mirror mirror(allocator, query.data, key.data, value.data, output.data, grad_output.data, grad_query.data,
                        log_sum_exp, grad_key, grad_value);
    cuda::run(AttentionForward{shape, mirror(query.data.data()), mirror(key.data.data()), mirror(value.data.data()),
                               mirror(output.data.data()), mirror(log_sum_exp.data())},
              queue);
    if (backward) {
      cuda::run(AttentionBackward{shape, mirror(query.data.data()), mirror(key.data.data()), mirror(value.data.data()),
                                  mirror(output.data.data()), mirror(log_sum_exp.data()),
                                  mirror(grad_output.data.data()), mirror(grad_query.data.data()), shape.query_stride,
                                  mirror(grad_key.data()), mirror(grad_value.data())},
                queue);
    }
    output.data = mirror.now(output.data);
    log_sum_exp = mirror.now(log_sum_exp);
    grad_query.data = mirror.now(grad_query.data);
    grad_key = mirror.now(grad_key);
    grad_value = mirror.now(grad_value);
  }

  AttentionShape shape;
  Rows<T> query, key, value, output, grad_output, grad_query;
  std::vector<float> log_sum_exp, grad_key, grad_value;
};

std::string words(const AttentionShape& shape) {
  return fmt::format("batch {} queries {} keys {} heads {}/{} head_dim {} first {} upward {} window {}", shape.batch,
                     shape.queries, shape.keys, shape.heads, shape.kv_heads, shape.head_dim, shape.first_position,
                     shape.visibility == Visibility::kUpward, shape.window);
}

void expect_close(const Doubles& got, const Doubles& want, double bound, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (std::isinf(want[i])) {
      ASSERT_EQ(got[i], want[i]) << what << " element " << i;
    } else {
      ASSERT_NEAR(got[i], want[i], bound * std::max(1.0, std::abs(want[i]))) << what << " element " << i;
    }
  }
}

Doubles widened(const std::vector<float>& from, double minus = 0) {
  Doubles to;
  for (const float value : from) to.push_back(static_cast<double>(value) - minus);
  return to;
}

std::vector<Ask> asks(Random& random) {
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
  void forward(Problem<T>& problem) { problem.run(this->allocator(), this->queue(), false); }
  void both(Problem<T>& problem) { problem.run(this->allocator(), this->queue(), true); }

  void expect_both_right(const AttentionShape& shape, Random& random) {
    Problem<T> problem(shape, random);
    const std::string what = words(shape);
    const reference::Attention want = problem.expected();
    const auto slopes = reference::attend_backward(shape, problem.query.dense(), problem.dense_keys(problem.key),
                                                   problem.dense_keys(problem.value), problem.grad_output.dense());
    both(problem);
    constexpr double kSlack = kBound<T>;
    ASSERT_NO_FATAL_FAILURE(expect_close(problem.output.dense(), want.output, kSlack, what));
    ASSERT_NO_FATAL_FAILURE(expect_close(widened(problem.log_sum_exp), want.log_sum_exp, 2e-5, what));
    ASSERT_NO_FATAL_FAILURE(expect_close(problem.grad_query.dense(), slopes.query, 2 * kSlack, "query of " + what));
    ASSERT_NO_FATAL_FAILURE(expect_close(widened(problem.grad_key, 0.5), slopes.key, 2 * kSlack, "key of " + what));
    ASSERT_NO_FATAL_FAILURE(
        expect_close(widened(problem.grad_value, 0.5), slopes.value, 2 * kSlack, "value of " + what));
    problem.output.expect_gaps_untouched();
    problem.grad_query.expect_gaps_untouched();
  }
};
TYPED_TEST_SUITE(CudaAttention, test::ComputeTypes);

TYPED_TEST(CudaAttention, AgreesWithDoublePrecisionForwardAndBackward) {
  Random random;
  for (const Ask& ask : asks(random)) {
    ASSERT_NO_FATAL_FAILURE(this->expect_both_right(random_shape<TypeParam>(random, ask), random));
  }
}

// Warps have 16 rows: a tile that all of them see whole, or all but for one key, comes up at one place of 16.
TYPED_TEST(CudaAttention, QueriesSeeTheirKeysAndNoOtherWhereverTilesEnd) {
  Random random;
  const std::int64_t first = random.integer(0, 30);
  constexpr std::int64_t kPlaces = test::kSanitized ? 3 : 16;
  for (const std::int64_t head_dim : {64, 128}) {
    for (std::int64_t place = first; place < first + kPlaces; ++place) {
      AttentionShape shape = random_shape<TypeParam>(
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
      const Ask ask{.queries = 1,
                    .head_dim = head_dim,
                    .gap = head_dim == 32 ? 1 : 8,
                    .first_position = first,
                    .beyond = random.integer(0, 5)};
      Problem<TypeParam> problem(random_shape<TypeParam>(random, ask), random);
      if (random.flip()) problem.shape.window = 0;
      const reference::Attention want = problem.expected();
      this->forward(problem);
      const std::string what = words(problem.shape);
      ASSERT_NO_FATAL_FAILURE(expect_close(problem.output.dense(), want.output, kBound<TypeParam>, what));
      ASSERT_NO_FATAL_FAILURE(expect_close(widened(problem.log_sum_exp), want.log_sum_exp, 2e-5, what));
    }
  }
}

// As many splits as there ever are.
TYPED_TEST(CudaAttention, OneHeadOverThousandsOfKeysAgreesWithDoublePrecision) {
  Random random;
  for (const std::int64_t head_dim : {32, 64, 128, 256}) {
    AttentionShape shape = random_shape<TypeParam>(
        random, {.queries = 1, .head_dim = head_dim, .first_position = random.integer(3900, 4500)});
    shape.batch = shape.heads = shape.kv_heads = 1;
    shape.query_stride = shape.output_stride = shape.key_stride = head_dim;
    shape.key_batch_stride = shape.keys * head_dim;
    shape.window = 0;
    Problem<TypeParam> problem(shape, random);
    const reference::Attention want = problem.expected();
    this->forward(problem);
    ASSERT_NO_FATAL_FAILURE(expect_close(problem.output.dense(), want.output, kBound<TypeParam>, words(shape)));
    ASSERT_NO_FATAL_FAILURE(expect_close(widened(problem.log_sum_exp), want.log_sum_exp, 2e-5, words(shape)));
  }
}

TYPED_TEST(CudaAttention, HeadsThatShareAKvHeadAreAllAnswered) {
  Random random;
  for (const std::int64_t group : {1, 2, 3, 4, 6, 8, 12, 16, 17, 40}) {
    AttentionShape shape = random_shape<TypeParam>(
        random, {.queries = 1, .head_dim = random.flip() ? 64 : 128, .first_position = random.integer(0, 300)});
    shape.heads = group * shape.kv_heads;
    shape.query_stride = shape.output_stride = shape.heads * shape.head_dim;
    Problem<TypeParam> problem(shape, random);
    const reference::Attention want = problem.expected();
    this->forward(problem);
    ASSERT_NO_FATAL_FAILURE(expect_close(problem.output.dense(), want.output, kBound<TypeParam>, words(shape)));
  }
}

TYPED_TEST(CudaAttention, FirstQueryOfAnUpwardReadIsExactlyZeroAndSoIsItsGradient) {
  Random random;
  for (const std::int64_t head_dim : {40, 64, 128}) {
    for (const std::int64_t queries : {1, 2, 70}) {
      AttentionShape shape = random_shape<TypeParam>(random, {.queries = queries, .head_dim = head_dim});
      shape.visibility = Visibility::kUpward;
      Problem<TypeParam> problem(shape, random);
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
      AttentionShape shape = random_shape<TypeParam>(random, {.queries = queries, .head_dim = head_dim, .beyond = 80});
      Problem<TypeParam> problem(shape, random);
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
      const AttentionShape shape =
          random_shape<TypeParam>(random, {.queries = queries, .head_dim = head_dim, .first_position = kFirst});
      Problem<TypeParam> one(shape, random);
      Problem<TypeParam> other = one;
      this->both(one);
      this->both(other);
      EXPECT_EQ(one.output.dense(), other.output.dense());
      EXPECT_EQ(one.grad_query.dense(), other.grad_query.dense());
      EXPECT_TRUE(test::equal_bits(one.grad_key, other.grad_key));
      EXPECT_TRUE(test::equal_bits(one.grad_value, other.grad_value));
    }
  }
}

// With cuDNN's kernels where there are any; under simt with plain loops in their place.
class CudaAttentionByCudnn : public test::GpuTest {
 protected:
  void SetUp() override {
    test::GpuTest::SetUp();
    if (IsSkipped()) return;
    try {
      cuda::choose_attention(queue(), AttentionChoice::kCudnn,
                             [this](const std::string& words) { said_.push_back(words); });
    } catch (const InputError& error) {
      GTEST_SKIP() << error.what();
    }
  }
  // Of a kind that cuDNN is asked about.
  static AttentionShape shape_for_cudnn(Random& random, std::int64_t queries) {
    const Ask ask{.queries = queries, .head_dim = random.flip() ? 64 : 128, .beyond = random.integer(0, 3)};
    AttentionShape shape = random_shape<BFloat16>(random, ask);
    if (shape.window == 1) shape.window = 2;
    if (shape.visibility == Visibility::kUpward && random.flip()) shape.keys = ask.queries - 1;
    shape.key_batch_stride = shape.keys * shape.key_stride;
    return shape;
  }

  // Forward and backward, twice.
  void expect_agreement(Random& random, std::int64_t queries) {
    Problem<BFloat16> problem(shape_for_cudnn(random, queries), random);
    const std::string what = words(problem.shape);
    const reference::Attention want = problem.expected();
    const auto slopes =
        reference::attend_backward(problem.shape, problem.query.dense(), problem.dense_keys(problem.key),
                                   problem.dense_keys(problem.value), problem.grad_output.dense());
    const Problem<BFloat16> given = problem;
    problem.run(allocator(), queue(), true);
    constexpr double kSlack = kBound<BFloat16>;
    ASSERT_NO_FATAL_FAILURE(expect_close(problem.output.dense(), want.output, kSlack, what));
    ASSERT_NO_FATAL_FAILURE(expect_close(widened(problem.log_sum_exp), want.log_sum_exp, 1e-3, what));
    ASSERT_NO_FATAL_FAILURE(expect_close(problem.grad_query.dense(), slopes.query, 2 * kSlack, "query of " + what));
    ASSERT_NO_FATAL_FAILURE(expect_close(widened(problem.grad_key, 0.5), slopes.key, 2 * kSlack, "key of " + what));
    ASSERT_NO_FATAL_FAILURE(
        expect_close(widened(problem.grad_value, 0.5), slopes.value, 2 * kSlack, "value of " + what));
    // The second time nothing is compared, and the bits are the same.
    Problem<BFloat16> again = given;
    again.run(allocator(), queue(), true);
    EXPECT_EQ(again.output.dense(), problem.output.dense());
    EXPECT_EQ(again.grad_query.dense(), problem.grad_query.dense());
    EXPECT_TRUE(test::equal_bits(again.grad_key, problem.grad_key));
    EXPECT_TRUE(test::equal_bits(again.grad_value, problem.grad_value));
    if (problem.shape.visibility != Visibility::kUpward) return;
    for (std::int64_t b = 0; b < problem.shape.batch; ++b) {
      for (std::int64_t i = 0; i < problem.width(); ++i) {
        ASSERT_EQ(problem.output(b * problem.shape.queries, i), 0.0);
        ASSERT_EQ(problem.grad_query(b * problem.shape.queries, i), 0.0);
      }
    }
  }

  std::vector<std::string> said_;
};

TEST_F(CudaAttentionByCudnn, AgreesWithDoublePrecisionForwardAndBackward) {
  Random random;
  for (int repeat = 0; repeat < 8; ++repeat) {
    ASSERT_NO_FATAL_FAILURE(expect_agreement(random, random.integer(16, 90)));
  }
  EXPECT_EQ(said_.size(), 1u) << said_.back();  // cuDNN took them all
}

// cuDNN may have no kernel for some of these; then ours answer.
TEST_F(CudaAttentionByCudnn, SequencesOfAFewTokensAgreeToo) {
  Random random;
  for (const std::int64_t queries : {2, 3, 7, 15}) {
    ASSERT_NO_FATAL_FAILURE(expect_agreement(random, queries));
  }
}

TEST_F(CudaAttentionByCudnn, WhatCudnnDoesNotTakeGoesToOurOwnKernelsAndIsSaidOnce) {
  Random random;
  for (int repeat = 0; repeat < 3; ++repeat) {
    Problem<float> problem(random_shape<float>(random, {.queries = random.integer(2, 30), .head_dim = 64}), random);
    const reference::Attention want = problem.expected();
    problem.run(allocator(), queue(), true);
    ASSERT_NO_FATAL_FAILURE(expect_close(problem.output.dense(), want.output, kBound<float>, words(problem.shape)));
  }
  EXPECT_EQ(said_.size(), 2u);
  EXPECT_THAT(said_.back(), ::testing::HasSubstr("bf16"));
}

}  // namespace
}  // namespace kvloom
