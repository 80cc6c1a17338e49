// Attention on a GPU for tests: a problem, its answers in double precision, and what a way of computing it gives.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "tests/support/gpu.h"
#include "tests/support/kernel_rows.h"
#include "tests/support/reference_attention.h"

namespace kvloom::test {

template <typename T>
inline constexpr double kAttentionBound = std::is_same_v<T, float> ? 2e-5 : 2e-2;

// What decides the way: tensor cores take head_dim 64 and 128 of bf16 at even places, decode one query.
struct AttentionAsk {
  std::int64_t queries;
  std::int64_t head_dim;
  std::int64_t gap = 0;  // between rows, times a number of up to 2
  std::int64_t first_position = 0;
  std::int64_t beyond = 0;  // keys past the last visible one
};

template <typename T>
AttentionShape random_attention_shape(Random& random, const AttentionAsk& ask) {
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
struct AttentionProblem {
  AttentionProblem(const AttentionShape& given, Random& random)
      : shape(given),
        query(rows(), width(), shape.query_stride),
        key(shape.batch * shape.key_batch_stride / shape.key_stride + 2, kv_width(), shape.key_stride),
        value(key),
        output(rows(), width(), shape.output_stride),
        grad_output(output),
        grad_query(query),
        log_sum_exp(area(rows(), shape.heads), Rows<float>::gap()),
        grad_key(area(shape.batch * shape.keys, kv_width()), 0.5f),
        grad_value(grad_key) {
    query.randomise(random);
    grad_output.randomise(random);
    for (T& x : key.data) x = T(static_cast<float>(random.normal()));
    for (T& x : value.data) x = T(static_cast<float>(random.normal()));
  }
  std::int64_t rows() const { return shape.batch * shape.queries; }
  std::int64_t width() const { return shape.heads * shape.head_dim; }
  std::int64_t kv_width() const { return shape.kv_heads * shape.head_dim; }

  reference::Doubles dense_keys(const Rows<T>& from) const {
    reference::Doubles values;
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t j = 0; j < shape.keys; ++j) {
        for (std::int64_t i = 0; i < kv_width(); ++i) {
          values.push_back(
              to_double(from.data[static_cast<std::size_t>(b * shape.key_batch_stride + j * shape.key_stride + i)]));
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

inline std::string words(const AttentionShape& shape) {
  return fmt::format("batch {} queries {} keys {} heads {}/{} head_dim {} first {} upward {} window {}", shape.batch,
                     shape.queries, shape.keys, shape.heads, shape.kv_heads, shape.head_dim, shape.first_position,
                     shape.visibility == Visibility::kUpward, shape.window);
}

inline void expect_attention(const reference::Doubles& got, const reference::Doubles& want, double bound,
                             const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (std::isinf(want[i])) {
      ASSERT_EQ(got[i], want[i]) << what << " element " << i;
    } else {
      ASSERT_NEAR(got[i], want[i], bound * std::max(1.0, std::abs(want[i]))) << what << " element " << i;
    }
  }
}

inline reference::Doubles widened(const std::vector<float>& from, double minus = 0) {
  reference::Doubles to;
  for (const float value : from) to.push_back(static_cast<double>(value) - minus);
  return to;
}

struct AttentionAnswers {
  reference::Attention forward;
  reference::AttentionGradients backward;

  template <typename T>
  explicit AttentionAnswers(const AttentionProblem<T>& problem)
      : forward(problem.expected()),
        backward(reference::attend_backward(problem.shape, problem.query.dense(), problem.dense_keys(problem.key),
                                            problem.dense_keys(problem.value), problem.grad_output.dense())) {}

  // What `problem.run` has left, with its log_sum_exp within a bound of its own.
  template <typename T>
  void expect(const AttentionProblem<T>& problem, double statistics_bound) const {
    const std::string what = words(problem.shape);
    constexpr double kSlack = kAttentionBound<T>;
    ASSERT_NO_FATAL_FAILURE(expect_attention(problem.output.dense(), forward.output, kSlack, what));
    ASSERT_NO_FATAL_FAILURE(
        expect_attention(widened(problem.log_sum_exp), forward.log_sum_exp, statistics_bound, what));
    ASSERT_NO_FATAL_FAILURE(
        expect_attention(problem.grad_query.dense(), backward.query, 2 * kSlack, "query of " + what));
    ASSERT_NO_FATAL_FAILURE(
        expect_attention(widened(problem.grad_key, 0.5), backward.key, 2 * kSlack, "key of " + what));
    ASSERT_NO_FATAL_FAILURE(
        expect_attention(widened(problem.grad_value, 0.5), backward.value, 2 * kSlack, "value of " + what));
  }
};

}  // namespace kvloom::test
