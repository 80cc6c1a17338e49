#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/tile_products.h"

namespace kvloom::cpu {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Scratch of one thread. Rows of a query tile are (query, head of the group) pairs: heads that share K/V share their
// tiles too.
struct Scratch {
  Scratch(std::int64_t rows, std::int64_t head_dim)
      : query(static_cast<std::size_t>(rows * head_dim)),
        key(static_cast<std::size_t>(kKeyTile * head_dim)),
        value(static_cast<std::size_t>(kKeyTile * head_dim)),
        scores(static_cast<std::size_t>(rows * kKeyTile)),
        output(static_cast<std::size_t>(rows * head_dim)),
        largest(static_cast<std::size_t>(rows)),
        total(static_cast<std::size_t>(rows)),
        shift(static_cast<std::size_t>(rows)),
        sums(static_cast<std::size_t>(rows)),
        begin(static_cast<std::size_t>(rows)),
        end(static_cast<std::size_t>(rows)) {}

  std::vector<float> query, key, value, scores, output, largest, total, shift, sums;
  std::vector<std::int64_t> begin, end;
};

// The part of the work of one thread: the heads of one KV head over queries [first, last) of one sequence.
template <typename T>
class QueryTile {
 public:
  QueryTile(const AttentionForward& op, const AttentionShape& shape, std::int64_t batch, std::int64_t kv_head,
            std::int64_t first, std::int64_t last, Scratch& scratch)
      : op_(op),
        shape_(shape),
        group_(shape.heads / shape.kv_heads),
        first_(first),
        queries_(last - first),
        row_offset_(batch * shape.queries + first),
        head_(kv_head * group_),
        keys_(batch * shape.key_batch_stride + kv_head * shape.head_dim),
        scratch_(scratch) {}

  void run() {
    load_queries();
    const KeyRange range = visible(shape_, first_, first_ + queries_);
    for (std::int64_t key = range.begin; key < range.end; key += kKeyTile) {
      attend(key, std::min(range.end, key + kKeyTile));
    }
    store_output();
  }

 private:
  std::int64_t rows() const { return queries_ * group_; }

  void load_queries() {
    const std::int64_t dim = shape_.head_dim;
    for (std::int64_t n = 0; n < queries_; ++n) {
      const T* query = static_cast<const T*>(op_.query) + (row_offset_ + n) * shape_.query_stride + head_ * dim;
      widen(query, dim, group_, dim, scratch_.query.data() + n * group_ * dim, dim);
    }
    std::fill_n(scratch_.output.begin(), rows() * dim, 0.0f);
    std::fill_n(scratch_.largest.begin(), rows(), kNothing);
    std::fill_n(scratch_.total.begin(), rows(), 0.0f);
  }

  void attend(std::int64_t key_begin, std::int64_t key_end) {
    const std::int64_t dim = shape_.head_dim;
    const std::int64_t columns = key_end - key_begin;
    const std::int64_t offset = keys_ + key_begin * shape_.key_stride;
    widen_transposed(static_cast<const T*>(op_.key) + offset, shape_.key_stride, columns, dim, scratch_.key.data(),
                     kKeyTile);
    widen(static_cast<const T*>(op_.value) + offset, shape_.key_stride, columns, dim, scratch_.value.data(), dim);
    multiply_tile({.a = scratch_.query.data(),
                   .b = scratch_.key.data(),
                   .c = scratch_.scores.data(),
                   .rows = rows(),
                   .columns = columns,
                   .inner = dim,
                   .a_stride = dim,
                   .b_stride = kKeyTile,
                   .c_stride = kKeyTile});
    rescale(key_begin, columns);
    exponentiate_tile({.scores = scratch_.scores.data(),
                       .rows = rows(),
                       .columns = columns,
                       .stride = kKeyTile,
                       .scale = shape_.scale,
                       .shift = scratch_.shift.data(),
                       .begin = scratch_.begin.data(),
                       .end = scratch_.end.data(),
                       .sums = scratch_.sums.data()});
    for (std::int64_t r = 0; r < rows(); ++r) {
      scratch_.total[static_cast<std::size_t>(r)] += scratch_.sums[static_cast<std::size_t>(r)];
    }
    multiply_tile({.a = scratch_.scores.data(),
                   .b = scratch_.value.data(),
                   .c = scratch_.output.data(),
                   .rows = rows(),
                   .columns = dim,
                   .inner = columns,
                   .a_stride = kKeyTile,
                   .b_stride = dim,
                   .c_stride = dim,
                   .output = Output::kAccumulate});
  }

  // Raises each row's running maximum to this tile's and shrinks what was summed under the old one.
  void rescale(std::int64_t key_begin, std::int64_t columns) {
    const std::int64_t dim = shape_.head_dim;
    for (std::int64_t r = 0; r < rows(); ++r) {
      const auto at = static_cast<std::size_t>(r);
      const KeyRange range = visible(shape_, first_ + r / group_);
      scratch_.begin[at] = std::clamp<std::int64_t>(range.begin - key_begin, 0, columns);
      scratch_.end[at] = std::clamp<std::int64_t>(range.end - key_begin, 0, columns);
      float largest = kNothing;
      const float* scores = scratch_.scores.data() + r * kKeyTile;
#pragma omp simd reduction(max : largest)
      for (std::int64_t c = scratch_.begin[at]; c < scratch_.end[at]; ++c) largest = std::max(largest, scores[c]);
      largest *= shape_.scale;
      const float before = scratch_.largest[at];
      if (largest > before) {
        if (before != kNothing) {
          const float shrink = std::exp(before - largest);
          scratch_.total[at] *= shrink;
          float* output = scratch_.output.data() + r * dim;
#pragma omp simd
          for (std::int64_t c = 0; c < dim; ++c) output[c] *= shrink;
        }
        scratch_.largest[at] = largest;
      }
      scratch_.shift[at] = scratch_.largest[at] == kNothing ? 0.0f : scratch_.largest[at];
    }
  }

  void store_output() {
    const std::int64_t dim = shape_.head_dim;
    for (std::int64_t r = 0; r < rows(); ++r) {
      const auto at = static_cast<std::size_t>(r);
      const std::int64_t row = row_offset_ + r / group_;
      const std::int64_t head = head_ + r % group_;
      const float total = scratch_.total[at];
      const bool saw_nothing = scratch_.largest[at] == kNothing;
      const float scale = saw_nothing ? 0.0f : 1.0f / total;
      T* output = static_cast<T*>(op_.output) + row * shape_.output_stride + head * dim;
      const float* sum = scratch_.output.data() + r * dim;
#pragma omp simd
      for (std::int64_t c = 0; c < dim; ++c) store(output, c, sum[c] * scale);
      if (op_.log_sum_exp != nullptr) {
        op_.log_sum_exp[row * shape_.heads + head] = saw_nothing ? kNothing : scratch_.largest[at] + std::log(total);
      }
    }
  }

  const AttentionForward& op_;
  const AttentionShape& shape_;
  std::int64_t group_;
  std::int64_t first_;
  std::int64_t queries_;
  std::int64_t row_offset_;
  std::int64_t head_;
  std::int64_t keys_;
  Scratch& scratch_;
};

template <typename T>
void forward(const AttentionForward& op) {
  const AttentionShape shape = with_strides(op.shape);
  const std::int64_t group = shape.heads / shape.kv_heads;
  const std::int64_t tile = std::max<std::int64_t>(1, kQueryTile / group);
  const std::int64_t tiles = (shape.queries + tile - 1) / tile;
  const std::int64_t jobs = shape.batch * shape.kv_heads * tiles;
#pragma omp parallel if (jobs > 1 && shape.queries * shape.keys * shape.heads * shape.head_dim > (1 << 16))
  {
    Scratch scratch(tile * group, shape.head_dim);
    // Later tiles see more keys: dynamic shares them out evenly, and no sum depends on who computes what.
#pragma omp for schedule(dynamic)
    for (std::int64_t job = 0; job < jobs; ++job) {
      const std::int64_t first = job % tiles * tile;
      QueryTile<T>(op, shape, job / tiles / shape.kv_heads, job / tiles % shape.kv_heads, first,
                   std::min(shape.queries, first + tile), scratch)
          .run();
    }
  }
}

}  // namespace

void run(const AttentionForward& op) {
  if (op.shape.batch == 0 || op.shape.queries == 0) return;
  with_element_type(op.shape.dtype, "attention", [&]<typename T>(T*) { forward<T>(op); });
}

}  // namespace kvloom::cpu
