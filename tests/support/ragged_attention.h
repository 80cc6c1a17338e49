// Attention of sequences that each stand at positions of their own, their keys one after another or in pages, with
// everything that no query sees poisoned.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "tests/support/kernel_rows.h"
#include "tests/support/random_pages.h"
#include "tests/support/reference_attention.h"

namespace kvloom::test {

struct RaggedAsk {
  std::int64_t queries;
  std::int64_t head_dim;
  std::int64_t furthest;  // start of a sequence
  std::int64_t group = 1;
  std::int64_t gap = 0;  // between rows, in elements
};

template <typename T>
AttentionShape random_ragged_shape(Random& random, const RaggedAsk& ask) {
  AttentionShape shape{};
  shape.batch = random.integer(1, 4);
  shape.queries = ask.queries;
  shape.first_position = random.integer(0, 3);
  shape.keys = shape.first_position + ask.furthest + ask.queries + random.integer(0, 9);
  shape.kv_heads = random.integer(1, 2);
  shape.heads = shape.kv_heads * ask.group;
  shape.head_dim = ask.head_dim;
  shape.visibility = random.flip() ? Visibility::kUpward : Visibility::kDownward;
  shape.window = random.flip() ? random.integer(1, ask.queries + ask.furthest) : 0;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  shape.query_stride = shape.heads * shape.head_dim + ask.gap;
  shape.output_stride = shape.heads * shape.head_dim + ask.gap;
  shape.key_stride = shape.kv_heads * shape.head_dim + ask.gap;
  shape.key_batch_stride = shape.keys * shape.key_stride + ask.gap;
  shape.dtype = DTypeOf<T>::value;
  return shape;
}

// Each start is 0, as far as asked for, that of an empty place, or anywhere from an empty place on: the first queries
// of a sequence may stand before position 0 and the others not.
inline std::vector<std::int32_t> random_starts(Random& random, const AttentionShape& shape, std::int64_t furthest) {
  const std::int64_t empty = -shape.first_position - shape.queries;
  std::vector<std::int32_t> starts(static_cast<std::size_t>(shape.batch));
  for (std::int32_t& start : starts) {
    const std::int64_t partly = random.integer(empty, -shape.first_position);
    const std::int64_t kinds[] = {0, furthest, empty, partly, random.integer(empty, furthest)};
    start = static_cast<std::int32_t>(kinds[random.integer(0, 4)]);
  }
  return starts;
}

template <typename T>
struct RaggedAttention {
  RaggedAttention(const AttentionShape& given, std::int64_t furthest, Random& random)
      : RaggedAttention(given, random_starts(random, given, furthest), random) {}
  RaggedAttention(const AttentionShape& given, std::vector<std::int32_t> given_starts, Random& random)
      : shape(given),
        starts(std::move(given_starts)),
        query(shape.batch * shape.queries, shape.heads * shape.head_dim, shape.query_stride),
        key(caches()),
        value(key),
        output(query.rows, query.columns, shape.output_stride),
        log_sum_exp(area(query.rows, shape.heads), Rows<float>::gap()) {
    query.randomise(random);
    for (std::int64_t row = 0; row < query.rows; ++row) {
      if (position(row) >= 0) continue;
      for (std::int64_t i = 0; i < query.columns; ++i) query.at(row, i) = Rows<T>::gap();
    }
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t j = seen_begin(b); j < seen_end(b); ++j) {
        for (std::int64_t i = 0; i < kv_width(); ++i) {
          key[place(b, j, i)] = T(static_cast<float>(random.normal()));
          value[place(b, j, i)] = T(static_cast<float>(random.normal()));
        }
      }
    }
  }

  std::int64_t kv_width() const { return shape.kv_heads * shape.head_dim; }
  std::int64_t start(std::int64_t b) const { return starts[static_cast<std::size_t>(b)]; }
  // Of a row of `query`.
  std::int64_t position(std::int64_t row) const {
    return shape.first_position + start(row / shape.queries) + row % shape.queries;
  }
  // Keys [seen_begin, seen_end) are those that some query of sequence b sees.
  std::int64_t seen_end(std::int64_t b) const {
    const std::int64_t last = shape.first_position + start(b) + shape.queries - 1;
    return std::max<std::int64_t>(0, shape.visibility == Visibility::kUpward ? last : last + 1);
  }
  std::int64_t seen_begin(std::int64_t b) const {
    const std::int64_t first = shape.first_position + start(b);
    return shape.window > 0 ? std::clamp<std::int64_t>(first - shape.window + 1, 0, seen_end(b)) : 0;
  }
  std::size_t place(std::int64_t b, std::int64_t j, std::int64_t i) const {
    return static_cast<std::size_t>(b * shape.key_batch_stride + j * shape.key_stride + i);
  }

  // Gives every position that is seen a place in pools of pages, of which sequences may share some.
  void put_in_pages(std::int64_t page_size, Random& random) {
    pages.emplace(random, shape.batch, shape.keys, page_size);
    if (shape.batch > 1 && random.flip()) share_pages();
    key_pool.assign(area(pages->rows(), shape.key_stride), Rows<T>::gap());
    value_pool = key_pool;
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t j = seen_begin(b); j < seen_end(b); ++j) {
        const std::size_t row = area(pages->row(b, j), shape.key_stride);
        std::copy_n(&key[place(b, j, 0)], kv_width(), &key_pool[row]);
        std::copy_n(&value[place(b, j, 0)], kv_width(), &value_pool[row]);
      }
    }
  }

  // `at` gives the address of a buffer's element for the kernel.
  template <typename At>
  AttentionForward op(const At& at) {
    return {.shape = shape,
            .query = at(query.data.data()),
            .key = at(key.data()),
            .value = at(value.data()),
            .output = at(output.data.data()),
            .log_sum_exp = at(log_sum_exp.data()),
            .starts = at(starts.data())};
  }

  template <typename At>
  AttentionForward paged_op(const At& at) {
    AttentionForward result = op(at);
    result.shape.key_batch_stride = 0;
    result.key = at(key_pool.data());
    result.value = at(value_pool.data());
    result.page_table = pages->table(at(pages->entries().data()));
    return result;
  }

  // Each sequence alone, in double precision.
  reference::Attention expected() const {
    reference::Attention all;
    const Doubles queries = query.dense();
    const std::size_t size = queries.size() / static_cast<std::size_t>(shape.batch);
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      AttentionShape one = shape;
      one.batch = 1;
      one.first_position += start(b);
      const auto from = queries.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(b) * size);
      const auto answer = reference::attend(one, Doubles(from, from + static_cast<std::ptrdiff_t>(size)),
                                            keys_of(key, b), keys_of(value, b));
      all.output.insert(all.output.end(), answer.output.begin(), answer.output.end());
      all.log_sum_exp.insert(all.log_sum_exp.end(), answer.log_sum_exp.begin(), answer.log_sum_exp.end());
    }
    return all;
  }

  std::string words() const {
    return fmt::format(
        "batch {} queries {} keys {} heads {}/{} head_dim {} first {} upward {} window {} starts {} page size {}",
        shape.batch, shape.queries, shape.keys, shape.heads, shape.kv_heads, shape.head_dim, shape.first_position,
        shape.visibility == Visibility::kUpward, shape.window, fmt::join(starts, " "),
        pages.has_value() ? pages->page_size() : 0);
  }

  AttentionShape shape;
  std::vector<std::int32_t> starts;
  Rows<T> query;              // NaN at negative positions
  std::vector<T> key, value;  // NaN where nothing is seen, and so are pools
  std::optional<RandomPages> pages;
  std::vector<T> key_pool, value_pool;
  Rows<T> output;
  std::vector<float> log_sum_exp;

 private:
  // The last sequence gets the keys and values of the first on pages that both see whole: a prefix, say.
  void share_pages() {
    const std::int64_t last = shape.batch - 1;
    const std::int64_t size = pages->page_size();
    const std::int64_t begin = (std::max(seen_begin(0), seen_begin(last)) + size - 1) / size * size;
    const std::int64_t end = std::min(seen_end(0), seen_end(last)) / size * size;
    for (std::int64_t j = begin; j < end; ++j) {
      pages->share(last, j, 0);
      std::copy_n(&key[place(0, j, 0)], kv_width(), &key[place(last, j, 0)]);
      std::copy_n(&value[place(0, j, 0)], kv_width(), &value[place(last, j, 0)]);
    }
  }
  std::vector<T> caches() const {
    return std::vector<T>(area(shape.batch, shape.key_batch_stride) + 1, Rows<T>::gap());
  }
  // [keys, kv_heads, head_dim], zeros where nothing is seen.
  Doubles keys_of(const std::vector<T>& from, std::int64_t b) const {
    Doubles dense(area(shape.keys, kv_width()), 0.0);
    for (std::int64_t j = seen_begin(b); j < seen_end(b); ++j) {
      for (std::int64_t i = 0; i < kv_width(); ++i) {
        dense[area(j, kv_width()) + static_cast<std::size_t>(i)] = to_double(from[place(b, j, i)]);
      }
    }
    return dense;
  }
};

// Outputs within `bound`, log_sum_exp within 2e-5, of what is wanted; -infinity is met exactly, and so is zero where
// nothing is seen.
template <typename T>
void expect_answers(const RaggedAttention<T>& problem, const reference::Attention& want, double bound) {
  const auto expect = [&](double got, double wanted, double allowed, const char* what, std::size_t i) {
    if (std::isinf(wanted) || wanted == 0) {
      ASSERT_EQ(got, wanted) << what << " " << i << " of " << problem.words();
    } else {
      ASSERT_NEAR(got, wanted, allowed * std::max(1.0, std::abs(wanted)))
          << what << " " << i << " of " << problem.words();
    }
  };
  const Doubles output = problem.output.dense();
  const Doubles log_sum_exp = doubles(problem.log_sum_exp);
  ASSERT_EQ(output.size(), want.output.size());
  ASSERT_EQ(log_sum_exp.size(), want.log_sum_exp.size());
  for (std::size_t i = 0; i < output.size(); ++i) {
    ASSERT_NO_FATAL_FAILURE(expect(output[i], want.output[i], bound, "output", i));
  }
  for (std::size_t i = 0; i < log_sum_exp.size(); ++i) {
    ASSERT_NO_FATAL_FAILURE(expect(log_sum_exp[i], want.log_sum_exp[i], 2e-5, "log_sum_exp", i));
  }
}

}  // namespace kvloom::test
