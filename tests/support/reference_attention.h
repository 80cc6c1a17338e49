// Attention and its gradients in double precision, with the whole score matrix written out. All tensors dense:
// query, output [batch, queries, heads, head_dim]; key, value [batch, keys, kv_heads, head_dim].
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "kernels/attention.h"

namespace kvloom::reference {

using Doubles = std::vector<double>;

struct Attention {
  Doubles output;
  Doubles log_sum_exp;  // [batch, queries, heads]
};

struct AttentionGradients {
  Doubles query;
  Doubles key;
  Doubles value;
};

inline bool sees(const AttentionShape& shape, std::int64_t query, std::int64_t key) {
  const std::int64_t position = shape.first_position + query;
  const bool masked_above = shape.visibility == Visibility::kUpward ? key >= position : key > position;
  return !masked_above && (shape.window <= 0 || key > position - shape.window);
}

inline std::size_t query_row(const AttentionShape& shape, std::int64_t b, std::int64_t n, std::int64_t h) {
  return static_cast<std::size_t>(((b * shape.queries + n) * shape.heads + h) * shape.head_dim);
}

inline std::size_t key_row(const AttentionShape& shape, std::int64_t b, std::int64_t j, std::int64_t h) {
  const std::int64_t kv_head = h / (shape.heads / shape.kv_heads);
  return static_cast<std::size_t>(((b * shape.keys + j) * shape.kv_heads + kv_head) * shape.head_dim);
}

inline double dot(const double* a, const double* b, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// The softmax row of one query and head: [keys], zeros where it sees nothing. `log_sum_exp` may be null.
inline Doubles attention_weights(const AttentionShape& shape, const Doubles& query, const Doubles& key, std::int64_t b,
                                 std::int64_t n, std::int64_t h, double* log_sum_exp) {
  Doubles weights(static_cast<std::size_t>(shape.keys), 0.0);
  double most = -std::numeric_limits<double>::infinity();
  for (std::int64_t j = 0; j < shape.keys; ++j) {
    if (!sees(shape, n, j)) continue;
    double& score = weights[static_cast<std::size_t>(j)];
    score = shape.scale * dot(&query[query_row(shape, b, n, h)], &key[key_row(shape, b, j, h)], shape.head_dim);
    most = std::max(most, score);
  }
  double sum = 0;
  for (std::int64_t j = 0; j < shape.keys; ++j) {
    double& weight = weights[static_cast<std::size_t>(j)];
    weight = sees(shape, n, j) ? std::exp(weight - most) : 0.0;
    sum += weight;
  }
  for (double& weight : weights) weight = sum > 0 ? weight / sum : 0.0;
  if (log_sum_exp != nullptr) *log_sum_exp = most + (sum > 0 ? std::log(sum) : 0.0);
  return weights;
}

// Calls visit(b, n, h) for every query row.
template <typename Visit>
void for_each_query_row(const AttentionShape& shape, Visit visit) {
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t n = 0; n < shape.queries; ++n) {
      for (std::int64_t h = 0; h < shape.heads; ++h) visit(b, n, h);
    }
  }
}

inline Attention attend(const AttentionShape& shape, const Doubles& query, const Doubles& key, const Doubles& value) {
  Attention result{Doubles(query.size(), 0.0), Doubles(query.size() / static_cast<std::size_t>(shape.head_dim))};
  for_each_query_row(shape, [&](std::int64_t b, std::int64_t n, std::int64_t h) {
    const std::size_t at = query_row(shape, b, n, h);
    const Doubles weights = attention_weights(shape, query, key, b, n, h,
                                              &result.log_sum_exp[at / static_cast<std::size_t>(shape.head_dim)]);
    for (std::int64_t j = 0; j < shape.keys; ++j) {
      const double* row = &value[key_row(shape, b, j, h)];
      for (std::int64_t i = 0; i < shape.head_dim; ++i) {
        result.output[at + static_cast<std::size_t>(i)] += weights[static_cast<std::size_t>(j)] * row[i];
      }
    }
  });
  return result;
}

// `output` is what the forward pass left, which may have been rounded since.
inline AttentionGradients attend_backward(const AttentionShape& shape, const Doubles& query, const Doubles& key,
                                          const Doubles& value, const Doubles& output, const Doubles& grad_output) {
  AttentionGradients grad{Doubles(query.size()), Doubles(key.size()), Doubles(value.size())};
  for_each_query_row(shape, [&](std::int64_t b, std::int64_t n, std::int64_t h) {
    const std::size_t at = query_row(shape, b, n, h);
    const Doubles weights = attention_weights(shape, query, key, b, n, h, nullptr);
    Doubles slopes(weights.size());
    for (std::int64_t j = 0; j < shape.keys; ++j) {
      slopes[static_cast<std::size_t>(j)] = dot(&grad_output[at], &value[key_row(shape, b, j, h)], shape.head_dim);
    }
    const double mean = dot(&grad_output[at], &output[at], shape.head_dim);
    for (std::int64_t j = 0; j < shape.keys; ++j) {
      const double weight = weights[static_cast<std::size_t>(j)];
      const double slope = weight * (slopes[static_cast<std::size_t>(j)] - mean) * shape.scale;
      const std::size_t row = key_row(shape, b, j, h);
      for (std::size_t i = 0; i < static_cast<std::size_t>(shape.head_dim); ++i) {
        grad.query[at + i] += slope * key[row + i];
        grad.key[row + i] += slope * query[at + i];
        grad.value[row + i] += weight * grad_output[at + i];
      }
    }
  });
  return grad;
}

inline AttentionGradients attend_backward(const AttentionShape& shape, const Doubles& query, const Doubles& key,
                                          const Doubles& value, const Doubles& grad_output) {
  return attend_backward(shape, query, key, value, attend(shape, query, key, value).output, grad_output);
}

}  // namespace kvloom::reference
