// Attention of an inference step on the CPU: ragged rows over pages, against double precision, and a query's bits
// whatever stands beside it.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/cpu/ragged_attention.h"
#include "kernels/ragged_attention.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

using test::Random;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

float get(const std::vector<char>& bytes, DType dtype, std::int64_t i) {
  const char* from = bytes.data() + at(i) * size_of(dtype);
  if (dtype == DType::kF32) return *reinterpret_cast<const float*>(from);
  return static_cast<float>(*reinterpret_cast<const BFloat16*>(from));
}

void set(std::vector<char>& bytes, DType dtype, std::int64_t i, float value) {
  char* to = bytes.data() + at(i) * size_of(dtype);
  if (dtype == DType::kF32) {
    *reinterpret_cast<float*>(to) = value;
  } else {
    *reinterpret_cast<BFloat16*>(to) = BFloat16(value);
  }
}

// A pool of keys or values, its rows not a number until they are written.
struct Pool {
  Pool(KvFormat given, std::int64_t rows, std::int64_t given_heads, std::int64_t given_dim)
      : format(given),
        heads(given_heads),
        head_dim(given_dim),
        bytes(at(rows * heads * head_dim) * (format == KvFormat::kInt8 ? 1 : size_of(dtype()))),
        scales(at(rows * heads), kNaN) {
    std::memset(bytes.data(), 0xff, bytes.size());
  }

  DType dtype() const { return format == KvFormat::kF32 ? DType::kF32 : DType::kBF16; }
  KvPool op() { return {bytes.data(), format == KvFormat::kInt8 ? scales.data() : nullptr, format}; }
  double value(std::int64_t row, std::int64_t head, std::int64_t i) const {
    const std::int64_t index = (row * heads + head) * head_dim + i;
    if (format != KvFormat::kInt8) return get(bytes, dtype(), index);
    return static_cast<double>(static_cast<std::int8_t>(bytes[at(index)])) * scales[at(row * heads + head)];
  }
  void write(std::int64_t row, const std::vector<float>& values) {
    const std::int64_t places[] = {row};
    cpu::run(StoreKvRows{.input = values.data(),
                         .dtype = DType::kF32,
                         .pool = op(),
                         .rows = 1,
                         .kv_heads = heads,
                         .head_dim = head_dim,
                         .places = places});
  }

  KvFormat format;
  std::int64_t heads;
  std::int64_t head_dim;
  std::vector<char> bytes;
  std::vector<float> scales;
};

struct Ask {
  DType dtype;
  KvFormat key;
  KvFormat value;
  std::int64_t head_dim;
  std::int64_t group;
  std::int64_t sequences;
  std::int64_t most_rows;
  std::int64_t furthest;
};

struct Sequence {
  std::int64_t rows;
  std::int64_t first_position;
  std::vector<std::int32_t> pages;
  std::vector<std::int32_t> value_pages;  // empty: as the keys'
};

// A call with everything that it needs. Keys and values are drawn by sequence and position.
struct Problem {
  Problem(const Ask& given, Random& random)
      : ask(given),
        kv_heads(random.integer(1, 3)),
        heads(kv_heads * ask.group),
        page_size(std::int64_t{16} << random.integer(0, 3)),
        visibility(random.flip() ? Visibility::kUpward : Visibility::kDownward),
        window(random.flip() ? random.integer(1, ask.furthest + ask.most_rows) : 0),
        stride(heads * ask.head_dim + random.integer(0, 7)),
        key(ask.key, pool_rows(), kv_heads, ask.head_dim),
        value(ask.value, pool_rows(), kv_heads, ask.head_dim) {
    const bool apart = random.flip();
    std::vector<std::int32_t> free = shuffled_pages(random);
    std::vector<std::int32_t> free_of_values = shuffled_pages(random);
    for (std::int64_t s = 0; s < ask.sequences; ++s) {
      Sequence sequence{random.integer(1, ask.most_rows), random.flip() ? random.integer(0, ask.furthest) : 0, {}};
      const std::int64_t positions = sequence.first_position + sequence.rows;
      const std::int64_t seen = first_seen(sequence.first_position);
      for (std::int64_t page = 0; page * page_size < positions; ++page) {
        // Pages that nobody sees are nowhere.
        sequence.pages.push_back((page + 1) * page_size <= seen ? -1000000 : free.back());
        if (sequence.pages.back() >= 0) free.pop_back();
        if (!apart) continue;
        sequence.value_pages.push_back(sequence.pages.back() < 0 ? -1000000 : free_of_values.back());
        if (sequence.pages.back() >= 0) free_of_values.pop_back();
      }
      for (std::int64_t j = seen; j < positions - (visibility == Visibility::kUpward ? 1 : 0); ++j) {
        key.write(place(sequence, j), random.normals(at(kv_heads * ask.head_dim)));
        value.write(value_place(sequence, j), random.normals(at(kv_heads * ask.head_dim)));
      }
      rows += sequence.rows;
      sequences.push_back(std::move(sequence));
    }
    query.resize(at(rows * stride) * size_of(ask.dtype));
    for (std::int64_t i = 0; i < rows * stride; ++i) set(query, ask.dtype, i, static_cast<float>(random.normal()));
  }

  std::int64_t pool_rows() const {
    return ask.sequences * (ask.furthest + ask.most_rows + page_size) / page_size * page_size;
  }
  std::int64_t first_seen(std::int64_t position) const {
    return window > 0 ? std::max<std::int64_t>(0, position - window + 1) : 0;
  }
  std::int64_t last_seen(std::int64_t position) const {
    return visibility == Visibility::kUpward ? position : position + 1;
  }
  std::int64_t place(const Sequence& sequence, std::int64_t j) const {
    return sequence.pages[at(j / page_size)] * page_size + j % page_size;
  }
  std::int64_t value_place(const Sequence& sequence, std::int64_t j) const {
    if (sequence.value_pages.empty()) return place(sequence, j);
    return sequence.value_pages[at(j / page_size)] * page_size + j % page_size;
  }
  std::vector<std::int32_t> shuffled_pages(Random& random) const {
    std::vector<std::int32_t> pages(at(pool_rows() / page_size));
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), random.engine());
    return pages;
  }

  std::vector<SequenceRows> all_rows() const {
    std::vector<SequenceRows> result;
    std::int64_t first = 0;
    for (const Sequence& sequence : sequences) {
      result.push_back({first, sequence.rows, sequence.first_position, sequence.pages.data(),
                        sequence.value_pages.empty() ? nullptr : sequence.value_pages.data()});
      first += sequence.rows;
    }
    return result;
  }

  std::vector<char> fresh_output() const {
    std::vector<char> output(query.size());
    for (std::int64_t i = 0; i < rows * stride; ++i) set(output, ask.dtype, i, kNaN);
    return output;
  }

  // By the processor's products at hand, or in f32.
  void run(const std::vector<SequenceRows>& which, std::vector<char>& output) {
    cpu::attend_ragged(RaggedAttention{.sequences = which,
                                       .query = query.data(),
                                       .key = key.op(),
                                       .value = value.op(),
                                       .output = output.data(),
                                       .heads = heads,
                                       .kv_heads = kv_heads,
                                       .head_dim = ask.head_dim,
                                       .page_size = page_size,
                                       .visibility = visibility,
                                       .window = window,
                                       .scale = scale(),
                                       .dtype = ask.dtype,
                                       .query_stride = stride,
                                       .output_stride = stride},
                       products);
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(ask.head_dim)); }

  // Of one query and head: [head_dim].
  std::vector<double> expected(const Sequence& sequence, std::int64_t row, std::int64_t position,
                               std::int64_t head) const {
    const std::int64_t kv_head = head / ask.group;
    std::vector<double> scores;
    for (std::int64_t j = first_seen(position); j < last_seen(position); ++j) {
      double score = 0;
      for (std::int64_t i = 0; i < ask.head_dim; ++i) {
        score +=
            get(query, ask.dtype, row * stride + head * ask.head_dim + i) * key.value(place(sequence, j), kv_head, i);
      }
      scores.push_back(score * scale());
    }
    std::vector<double> result(at(ask.head_dim), 0.0);
    if (scores.empty()) return result;
    const double most = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (std::size_t n = 0; n < scores.size(); ++n) {
      const double weight = std::exp(scores[n] - most);
      sum += weight;
      const std::int64_t j = first_seen(position) + static_cast<std::int64_t>(n);
      for (std::int64_t i = 0; i < ask.head_dim; ++i) {
        result[at(i)] += weight * value.value(value_place(sequence, j), kv_head, i);
      }
    }
    for (double& element : result) element /= sum;
    return result;
  }

  std::string words() const {
    return fmt::format(
        "dtype {}, key {}, value {}, heads {}/{}, head_dim {}, page size {}, upward {}, window {}, rows {}, by {}",
        name_of(ask.dtype), static_cast<int>(ask.key), static_cast<int>(ask.value), heads, kv_heads, ask.head_dim,
        page_size, visibility == Visibility::kUpward, window, rows, products == nullptr ? "f32" : products->name);
  }

  // What the processor has for such a call.
  std::vector<const cpu::Bf16Products*> all_products() const {
    std::vector<const cpu::Bf16Products*> all = {nullptr};
    if (ask.dtype != DType::kBF16 || ask.key == KvFormat::kF32 || ask.value == KvFormat::kF32) return all;
    for (const cpu::Bf16Products& one : cpu::bf16_products()) all.push_back(&one);
    return all;
  }

  Ask ask;
  const cpu::Bf16Products* products = nullptr;
  std::int64_t kv_heads;
  std::int64_t heads;
  std::int64_t page_size;
  Visibility visibility;
  std::int64_t window;
  std::int64_t stride;
  Pool key;
  Pool value;
  std::int64_t rows = 0;
  std::vector<Sequence> sequences;
  std::vector<char> query;
};

std::vector<Ask> asks(Random& random) {
  constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kInt8};
  std::vector<Ask> all;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const KvFormat key : kFormats) {
      for (const std::int64_t head_dim : {8, 12, 32, 64, 80, 128}) {
        Ask ask{dtype, key, key, head_dim + (random.integer(0, 3) == 0 ? random.integer(1, 5) : 0), 0, 0, 0, 0};
        if (random.integer(0, 3) == 0) ask.value = kFormats[random.integer(0, 2)];
        ask.group = random.integer(1, 8);
        ask.sequences = random.integer(1, 5);
        ask.most_rows = random.flip() ? 1 : random.integer(2, 90);
        ask.furthest = random.flip() ? random.integer(1, 200) : random.integer(500, 1300);
        all.push_back(ask);
      }
    }
  }
  return all;
}

void expect_right(Problem& problem, Random& random) {
  const Ask& ask = problem.ask;
  std::vector<char> output = problem.fresh_output();
  const std::vector<SequenceRows> rows = problem.all_rows();
  problem.run(rows, output);
  const double bound = ask.dtype == DType::kF32 ? 2e-5 : 1.5e-2;
  for (std::int64_t checks = 0; checks < 30; ++checks) {
    const std::size_t s = at(random.integer(0, ask.sequences - 1));
    const std::int64_t n = random.flip() ? 0 : random.integer(0, rows[s].rows - 1);
    const std::int64_t head = random.integer(0, problem.heads - 1);
    const std::int64_t row = rows[s].first_row + n;
    const std::vector<double> want = problem.expected(problem.sequences[s], row, rows[s].first_position + n, head);
    for (std::int64_t i = 0; i < ask.head_dim; ++i) {
      const double got = get(output, ask.dtype, row * problem.stride + head * ask.head_dim + i);
      if (want[at(i)] == 0) {
        ASSERT_EQ(got, 0) << problem.words();
      } else {
        ASSERT_NEAR(got, want[at(i)], bound * std::max(1.0, std::fabs(want[at(i)]))) << problem.words();
      }
    }
  }
  for (std::int64_t row = 0; row < problem.rows; ++row) {
    for (std::int64_t i = problem.heads * ask.head_dim; i < problem.stride; ++i) {
      ASSERT_TRUE(std::isnan(get(output, ask.dtype, row * problem.stride + i))) << "wrote between rows";
    }
  }
}

TEST(RaggedRows, AgreeWithDoublePrecision) {
  Random random;
  for (const Ask& ask : asks(random)) {
    Problem problem(ask, random);
    for (const cpu::Bf16Products* products : problem.all_products()) {
      problem.products = products;
      ASSERT_NO_FATAL_FAILURE(expect_right(problem, random));
    }
  }
}

// Every sequence cut into pieces, and pieces of all sequences mixed into calls.
std::vector<std::vector<SequenceRows>> cut_anywhere(const Problem& problem, Random& random) {
  std::vector<SequenceRows> pieces;
  for (const SequenceRows& whole : problem.all_rows()) {
    for (std::int64_t n = 0; n < whole.rows;) {
      const std::int64_t count = std::min(whole.rows - n, random.flip() ? 1 : random.integer(1, 40));
      pieces.push_back({whole.first_row + n, count, whole.first_position + n, whole.pages, whole.value_pages});
      n += count;
    }
  }
  std::shuffle(pieces.begin(), pieces.end(), random.engine());
  std::vector<std::vector<SequenceRows>> calls(1);
  for (const SequenceRows& piece : pieces) {
    if (random.flip()) calls.emplace_back();
    calls.back().push_back(piece);
  }
  return calls;
}

void expect_bits_of_rows(Problem& problem, Random& random) {
  omp_set_num_threads(2);
  std::vector<char> whole = problem.fresh_output();
  problem.run(problem.all_rows(), whole);
  omp_set_num_threads(1);
  std::vector<char> cut = problem.fresh_output();
  for (const auto& call : cut_anywhere(problem, random)) problem.run(call, cut);
  ASSERT_TRUE(cut == whole) << "in pieces: " << problem.words();
  omp_set_num_threads(random.flip() ? 2 : 3);
  std::vector<char> alone = problem.fresh_output();
  for (const SequenceRows& rows : problem.all_rows()) {
    for (std::int64_t n = 0; n < rows.rows; ++n) {
      const std::vector<SequenceRows> one = {
          {rows.first_row + n, 1, rows.first_position + n, rows.pages, rows.value_pages}};
      problem.run(one, alone);
    }
  }
  ASSERT_TRUE(alone == whole) << "one by one: " << problem.words();
}

TEST(RaggedRows, AQueryHasItsBitsAloneInAChunkOfAnySizeAndByAnyThreads) {
  Random random;
  for (const Ask& ask : asks(random)) {
    Problem problem(ask, random);
    for (const cpu::Bf16Products* products : problem.all_products()) {
      problem.products = products;
      ASSERT_NO_FATAL_FAILURE(expect_bits_of_rows(problem, random));
    }
  }
  omp_set_num_threads(2);
}

// The problem with its pages in other places.
Problem with_pages_moved(const Problem& problem, Random& random) {
  Problem moved = problem;
  std::vector<std::int32_t> to(at(problem.pool_rows() / problem.page_size));
  std::iota(to.begin(), to.end(), 0);
  std::shuffle(to.begin(), to.end(), random.engine());
  const auto move = [&](const auto& from, auto& out) {
    const std::size_t size = from.size() / to.size();
    for (std::size_t page = 0; page < to.size(); ++page) {
      std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(page * size), size,
                  out.begin() + static_cast<std::ptrdiff_t>(at(to[page]) * size));
    }
  };
  move(problem.key.bytes, moved.key.bytes);
  move(problem.key.scales, moved.key.scales);
  move(problem.value.bytes, moved.value.bytes);
  move(problem.value.scales, moved.value.scales);
  for (Sequence& sequence : moved.sequences) {
    for (auto* pages : {&sequence.pages, &sequence.value_pages}) {
      for (std::int32_t& page : *pages) page = page < 0 ? page : to[at(page)];
    }
  }
  return moved;
}

TEST(RaggedRows, DoNotDependOnWherePagesLie) {
  Random random;
  for (const Ask& ask : asks(random)) {
    Problem problem(ask, random);
    problem.products = problem.all_products().back();
    Problem moved = with_pages_moved(problem, random);
    std::vector<char> first = problem.fresh_output();
    std::vector<char> second = first;
    problem.run(problem.all_rows(), first);
    moved.run(moved.all_rows(), second);
    ASSERT_TRUE(first == second) << problem.words();
  }
}

TEST(RaggedRows, AnUpwardQueryAtPositionZeroGivesZero) {
  Random random;
  Problem problem({DType::kF32, KvFormat::kF32, KvFormat::kF32, 32, 2, 1, 40, 1}, random);
  problem.visibility = Visibility::kUpward;
  problem.window = 0;
  problem.sequences[0].first_position = 0;
  problem.sequences[0].rows = 1;
  problem.sequences[0].pages = {-7};
  std::vector<char> output = problem.fresh_output();
  problem.run(problem.all_rows(), output);
  for (std::int64_t i = 0; i < problem.heads * 32; ++i) ASSERT_EQ(get(output, DType::kF32, i), 0.0f);
}

TEST(RaggedRows, OddShapesAreRefused) {
  Random random;
  Problem problem({DType::kF32, KvFormat::kInt8, KvFormat::kInt8, 32, 2, 1, 4, 10}, random);
  std::vector<char> output = problem.fresh_output();
  const std::vector<SequenceRows> rows = problem.all_rows();
  RaggedAttention op{.sequences = rows,
                     .query = problem.query.data(),
                     .key = problem.key.op(),
                     .value = problem.value.op(),
                     .output = output.data(),
                     .heads = problem.heads,
                     .kv_heads = problem.kv_heads,
                     .head_dim = 32,
                     .page_size = 24,
                     .scale = 1};
  EXPECT_THROW(cpu::run(op), Error);
  op.page_size = 16;
  op.heads = problem.kv_heads + 1;
  op.kv_heads = problem.kv_heads + 2;
  EXPECT_THROW(cpu::run(op), Error);
  op.kv_heads = problem.kv_heads;
  op.heads = problem.heads;
  op.value.scales = nullptr;
  EXPECT_THROW(cpu::run(op), Error);
}

}  // namespace
}  // namespace kvloom
