#include "kernels/attention.h"

#include <gtest/gtest.h>
#include <omp.h>

#include "tests/support/kernel_rows.h"
#include "tests/support/random.h"
#include "tests/support/reference_attention.h"

namespace kvloom {
namespace {

using reference::Doubles;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

std::size_t count(std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b); }

template <typename T>
double to_double(T value) {
  return static_cast<double>(static_cast<float>(value));
}

// [sequences][rows][size] with gaps between rows and sequences, filled with NaN: reading or trusting a gap shows.
template <typename T>
struct Strided {
  Strided(std::int64_t sequences_, std::int64_t rows_, std::int64_t size_, std::int64_t stride_,
          std::int64_t sequence_stride_)
      : sequences(sequences_),
        rows(rows_),
        size(size_),
        stride(stride_),
        sequence_stride(sequence_stride_),
        data(count(sequences, sequence_stride) + 1, T(kNaN)) {}

  template <typename Visit>
  void for_each(Visit visit) {
    for (std::int64_t s = 0; s < sequences; ++s) {
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t i = 0; i < size; ++i) {
          visit(data[static_cast<std::size_t>(s * sequence_stride + r * stride + i)]);
        }
      }
    }
  }
  Doubles dense() {
    Doubles values;
    for_each([&](T& value) { values.push_back(to_double(value)); });
    return values;
  }
  void randomise(test::Random& random) {
    for_each([&](T& value) { value = T(static_cast<float>(random.normal())); });
  }

  std::int64_t sequences, rows, size, stride, sequence_stride;
  std::vector<T> data;
};

// One problem with inputs, and room for what the kernels answer.
template <typename T>
struct Problem {
  Problem(const AttentionShape& given, test::Random& random)
      : shape(given),
        query(1, rows(), width(), shape.query_stride, rows() * shape.query_stride),
        key(shape.batch, shape.keys, kv_width(), shape.key_stride, shape.key_batch_stride),
        value(key),
        output(1, rows(), width(), shape.output_stride, rows() * shape.output_stride),
        grad_output(output),
        grad_query(query),
        log_sum_exp(count(rows(), shape.heads), kNaN),
        grad_key(count(shape.batch * shape.keys, kv_width()), 0.5f),
        grad_value(grad_key) {
    query.randomise(random);
    key.randomise(random);
    value.randomise(random);
    grad_output.randomise(random);
  }
  std::int64_t rows() const { return shape.batch * shape.queries; }
  std::int64_t width() const { return shape.heads * shape.head_dim; }
  std::int64_t kv_width() const { return shape.kv_heads * shape.head_dim; }

  void forward() {
    cpu::run(AttentionForward{shape, query.data.data(), key.data.data(), value.data.data(), output.data.data(),
                              log_sum_exp.data()});
  }
  void backward() {
    cpu::run(AttentionBackward{shape, query.data.data(), key.data.data(), value.data.data(), output.data.data(),
                               log_sum_exp.data(), grad_output.data.data(), grad_query.data.data(), shape.query_stride,
                               grad_key.data(), grad_value.data()});
  }

  AttentionShape shape;
  Strided<T> query, key, value, output, grad_output, grad_query;
  std::vector<float> log_sum_exp, grad_key, grad_value;
};

template <typename T>
AttentionShape random_shape(test::Random& random, std::int64_t queries) {
  const auto draw = [&](std::int64_t low, std::int64_t high) { return random.integer(low, high); };
  AttentionShape shape{};
  shape.batch = draw(1, 3);
  shape.queries = queries;
  shape.first_position = draw(0, 2) == 0 ? draw(0, 100) : 0;
  shape.keys = shape.first_position + queries + draw(0, 5);
  shape.kv_heads = draw(1, 3);
  shape.heads = shape.kv_heads * draw(1, 3);
  const std::int64_t sizes[] = {1, 7, 20, 32, 64, 80, 128};
  shape.head_dim = sizes[draw(0, 6)];
  shape.visibility = draw(0, 1) ? Visibility::kUpward : Visibility::kDownward;
  shape.window = draw(0, 1) ? draw(1, 90) : 0;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  shape.query_stride = shape.heads * shape.head_dim + draw(0, 9);
  shape.output_stride = shape.heads * shape.head_dim + draw(0, 9);
  shape.key_stride = shape.kv_heads * shape.head_dim + draw(0, 9);
  shape.key_batch_stride = shape.keys * shape.key_stride + draw(0, 9);
  shape.dtype = DTypeOf<T>::value;
  return shape;
}

std::string words(const AttentionShape& shape) {
  return fmt::format("batch {} queries {} keys {} heads {}/{} head_dim {} first {} upward {} window {}", shape.batch,
                     shape.queries, shape.keys, shape.heads, shape.kv_heads, shape.head_dim, shape.first_position,
                     shape.visibility == Visibility::kUpward, shape.window);
}

// Every element within `rounding` of what is wanted, 2e-5 of the root mean square of all that are finite, and 1e-5 of
// the terms of a gradient, which are about 1 and may cancel to nothing.
void expect_close(const Doubles& got, const Doubles& want, double rounding, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  double square = 0;
  double finite = 0;
  for (const double value : want) {
    if (std::isinf(value)) continue;
    square += value * value;
    ++finite;
  }
  const double size = std::sqrt(square / std::max(1.0, finite));
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (std::isinf(want[i])) {
      ASSERT_EQ(got[i], want[i]) << what << " element " << i;
    } else {
      ASSERT_NEAR(got[i], want[i], rounding * std::abs(want[i]) + 2e-5 * size + 1e-5) << what << " element " << i;
    }
  }
}

Doubles widened(const std::vector<float>& from, double minus = 0) {
  Doubles to;
  for (const float value : from) to.push_back(static_cast<double>(value) - minus);
  return to;
}

template <typename T>
class Attention : public testing::Test {
 protected:
  static constexpr double kRounding = test::rounding_of<T>();
};
using Types = testing::Types<float, BFloat16>;
TYPED_TEST_SUITE(Attention, Types);

TYPED_TEST(Attention, ForwardAgreesWithDoublePrecision) {
  test::Random random;
  for (int round = 0; round < 60; ++round) {
    const std::int64_t queries = round % 3 == 0 ? 1 : random.integer(2, 150);
    Problem<TypeParam> problem(random_shape<TypeParam>(random, queries), random);
    problem.forward();
    const auto want =
        reference::attend(problem.shape, problem.query.dense(), problem.key.dense(), problem.value.dense());
    const std::string what = words(problem.shape);
    ASSERT_NO_FATAL_FAILURE(expect_close(problem.output.dense(), want.output, this->kRounding, what));
    ASSERT_NO_FATAL_FAILURE(expect_close(widened(problem.log_sum_exp), want.log_sum_exp, 1e-5, what));
  }
}

TYPED_TEST(Attention, BackwardAgreesWithDoublePrecisionAndAddsToKeyAndValueGradients) {
  test::Random random;
  for (int round = 0; round < 40; ++round) {
    const std::int64_t queries = round % 6 == 0 ? 1 : random.integer(2, 150);
    Problem<TypeParam> problem(random_shape<TypeParam>(random, queries), random);
    problem.forward();
    problem.backward();
    const auto want =
        reference::attend_backward(problem.shape, problem.query.dense(), problem.key.dense(), problem.value.dense(),
                                   problem.output.dense(), problem.grad_output.dense());
    const std::string what = words(problem.shape);
    ASSERT_NO_FATAL_FAILURE(expect_close(problem.grad_query.dense(), want.query, this->kRounding, "query of " + what));
    ASSERT_NO_FATAL_FAILURE(expect_close(widened(problem.grad_key, 0.5), want.key, this->kRounding, "key of " + what));
    ASSERT_NO_FATAL_FAILURE(
        expect_close(widened(problem.grad_value, 0.5), want.value, this->kRounding, "value of " + what));
  }
}

TYPED_TEST(Attention, FirstQueryOfAnUpwardReadIsExactlyZeroAndSoIsItsGradient) {
  test::Random random;
  for (const std::int64_t queries : {1, 2, 70}) {
    AttentionShape shape = random_shape<TypeParam>(random, queries);
    shape.first_position = 0;
    shape.visibility = Visibility::kUpward;
    Problem<TypeParam> problem(shape, random);
    problem.forward();
    problem.backward();
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      const std::int64_t row = b * queries;
      for (std::int64_t i = 0; i < problem.width(); ++i) {
        ASSERT_EQ(to_double(problem.output.data[count(row, shape.output_stride) + count(i, 1)]), 0.0);
        ASSERT_EQ(to_double(problem.grad_query.data[count(row, shape.query_stride) + count(i, 1)]), 0.0);
      }
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        ASSERT_EQ(problem.log_sum_exp[count(row, shape.heads) + count(h, 1)], kMinusInfinity);
      }
    }
    if (queries > 1) continue;
    for (const float grad : problem.grad_key) ASSERT_EQ(grad, 0.5f);
    for (const float grad : problem.grad_value) ASSERT_EQ(grad, 0.5f);
  }
}

TYPED_TEST(Attention, KeysBeyondTheLastVisibleOneAreNotRead) {
  test::Random random;
  for (const std::int64_t queries : {1, 5, 100}) {
    AttentionShape shape = random_shape<TypeParam>(random, queries);
    shape.keys = shape.first_position + queries + 80;
    shape.key_batch_stride = shape.keys * shape.key_stride;
    Problem<TypeParam> problem(shape, random);
    const std::int64_t end = shape.first_position + queries - (shape.visibility == Visibility::kUpward ? 1 : 0);
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      const std::size_t from = count(b, shape.key_batch_stride) + count(end, shape.key_stride);
      const std::size_t to = count(b + 1, shape.key_batch_stride);
      std::fill(problem.key.data.begin() + from, problem.key.data.begin() + to, TypeParam(kNaN));
      std::fill(problem.value.data.begin() + from, problem.value.data.begin() + to, TypeParam(kNaN));
    }
    problem.forward();
    problem.backward();
    for (const double value : problem.output.dense()) ASSERT_FALSE(std::isnan(value)) << words(shape);
    for (const double value : problem.grad_query.dense()) ASSERT_FALSE(std::isnan(value)) << words(shape);
    for (const float value : problem.grad_key) ASSERT_FALSE(std::isnan(value)) << words(shape);
  }
}

TYPED_TEST(Attention, BitsDoNotDependOnThreads) {
  test::Random random;
  const int threads = omp_get_max_threads();
  for (const std::int64_t queries : {1, 140}) {
    AttentionShape shape = random_shape<TypeParam>(random, queries);
    shape.first_position = 700;
    shape.keys = 700 + queries;
    shape.key_batch_stride = shape.keys * shape.key_stride;
    Problem<TypeParam> one(shape, random);
    Problem<TypeParam> several = one;
    omp_set_num_threads(1);
    one.forward();
    one.backward();
    omp_set_num_threads(3);
    several.forward();
    several.backward();
    omp_set_num_threads(threads);
    EXPECT_EQ(one.output.dense(), several.output.dense());
    EXPECT_EQ(one.grad_query.dense(), several.grad_query.dense());
    EXPECT_EQ(one.log_sum_exp, several.log_sum_exp);
    EXPECT_EQ(one.grad_key, several.grad_key);
    EXPECT_EQ(one.grad_value, several.grad_value);
  }
}

TEST(AttentionReference, GradientAgreesWithFiniteDifferences) {
  test::Random random;
  for (int round = 0; round < 4; ++round) {
    AttentionShape shape = random_shape<float>(random, 9);
    shape.head_dim = 5;
    const auto normals = [&](std::int64_t size) { return random.normals<double>(static_cast<std::size_t>(size)); };
    Doubles inputs[] = {normals(shape.batch * shape.queries * shape.heads * 5),
                        normals(shape.batch * shape.keys * shape.kv_heads * 5),
                        normals(shape.batch * shape.keys * shape.kv_heads * 5)};
    const Doubles grad_output = normals(shape.batch * shape.queries * shape.heads * 5);
    const auto loss = [&] {
      const auto result = reference::attend(shape, inputs[0], inputs[1], inputs[2]);
      return reference::dot(result.output.data(), grad_output.data(), static_cast<std::int64_t>(grad_output.size()));
    };
    const auto grads = reference::attend_backward(shape, inputs[0], inputs[1], inputs[2], grad_output);
    const Doubles* of_inputs[] = {&grads.query, &grads.key, &grads.value};
    for (int which = 0; which < 3; ++which) {
      for (int probe = 0; probe < 12; ++probe) {
        const auto at =
            static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(inputs[which].size()) - 1));
        double& x = inputs[which][at];
        const double kept = x;
        constexpr double kStep = 1e-5;
        x = kept + kStep;
        const double above = loss();
        x = kept - kStep;
        const double below = loss();
        x = kept;
        ASSERT_NEAR((above - below) / (2 * kStep), (*of_inputs[which])[at], 1e-7) << words(shape);
      }
    }
  }
}

}  // namespace
}  // namespace kvloom
