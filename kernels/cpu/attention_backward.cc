#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/tile_products.h"

namespace kvloom::cpu {
namespace {

std::vector<float> floats(std::int64_t count) { return std::vector<float>(static_cast<std::size_t>(count)); }

// Everything of one KV head of one sequence: it alone writes the gradients of that head, in a fixed order. With
// P = exp(S - lse), S = scale Q K^T, dP = dO V^T, D = rowsum(dO O) (Dao 2023, arXiv 2307.08691, algorithm 2):
//   dV += P^T dO,  dS = scale P (dP - D),  dQ += dS K,  dK += dS^T Q.
template <typename T>
class HeadGroup {
 public:
  HeadGroup(const AttentionBackward& op, const AttentionShape& shape)
      : op_(op),
        shape_(shape),
        dim_(shape.head_dim),
        group_(shape.heads / shape.kv_heads),
        tile_(std::max<std::int64_t>(1, kQueryTile / group_)),
        grad_queries_(floats(shape.queries * group_ * dim_)),
        query_(floats(tile_ * group_ * dim_)),
        grad_output_(floats(tile_ * group_ * dim_)),
        key_(floats(kKeyTile * dim_)),
        key_transposed_(floats(kKeyTile * dim_)),
        value_transposed_(floats(kKeyTile * dim_)),
        grad_key_(floats(kKeyTile * dim_)),
        grad_value_(floats(kKeyTile * dim_)),
        probabilities_(floats(tile_ * group_ * kKeyTile)),
        grad_scores_(floats(tile_ * group_ * kKeyTile)),
        delta_(floats(tile_ * group_)),
        shift_(floats(tile_ * group_)),
        sums_(floats(tile_ * group_)),
        begin_(static_cast<std::size_t>(tile_ * group_)),
        end_(static_cast<std::size_t>(tile_ * group_)) {}

  void run(std::int64_t batch, std::int64_t kv_head) {
    batch_ = batch;
    kv_head_ = kv_head;
    std::fill(grad_queries_.begin(), grad_queries_.end(), 0.0f);
    const KeyRange range = visible(shape_, 0, shape_.queries);
    for (std::int64_t key = visible(shape_, 0).begin; key < range.end; key += kKeyTile) {
      run_key_tile(key, std::min(range.end, key + kKeyTile));
    }
    store_grad_queries();
  }

 private:
  std::int64_t row(std::int64_t query) const { return batch_ * shape_.queries + query; }

  void run_key_tile(std::int64_t key_begin, std::int64_t key_end) {
    const std::int64_t columns = key_end - key_begin;
    const std::int64_t offset = batch_ * shape_.key_batch_stride + key_begin * shape_.key_stride + kv_head_ * dim_;
    const T* key = static_cast<const T*>(op_.key) + offset;
    const T* value = static_cast<const T*>(op_.value) + offset;
    widen(key, shape_.key_stride, columns, dim_, key_.data(), dim_);
    widen_transposed(key, shape_.key_stride, columns, dim_, key_transposed_.data(), kKeyTile);
    widen_transposed(value, shape_.key_stride, columns, dim_, value_transposed_.data(), kKeyTile);
    std::fill(grad_key_.begin(), grad_key_.end(), 0.0f);
    std::fill(grad_value_.begin(), grad_value_.end(), 0.0f);
    for (std::int64_t first = 0; first < shape_.queries; first += tile_) {
      const std::int64_t last = std::min(shape_.queries, first + tile_);
      const KeyRange range = visible(shape_, first, last);
      if (range.begin >= key_end || range.end <= key_begin) continue;
      run_tile(first, last, key_begin, columns);
    }
    if (op_.grad_key != nullptr) add_key_gradients(key_begin, columns);
  }

  void run_tile(std::int64_t first, std::int64_t last, std::int64_t key_begin, std::int64_t columns) {
    const std::int64_t rows = (last - first) * group_;
    load_rows(first, last, key_begin, columns);
    const TileProduct scores{.a = query_.data(),
                             .b = key_transposed_.data(),
                             .c = probabilities_.data(),
                             .rows = rows,
                             .columns = columns,
                             .inner = dim_,
                             .a_stride = dim_,
                             .b_stride = kKeyTile,
                             .c_stride = kKeyTile};
    multiply_tile(scores);
    exponentiate_tile({.scores = probabilities_.data(),
                       .rows = rows,
                       .columns = columns,
                       .stride = kKeyTile,
                       .scale = shape_.scale,
                       .shift = shift_.data(),
                       .begin = begin_.data(),
                       .end = end_.data(),
                       .sums = sums_.data()});
    TileProduct grad_probabilities = scores;
    grad_probabilities.a = grad_output_.data();
    grad_probabilities.b = value_transposed_.data();
    grad_probabilities.c = grad_scores_.data();
    multiply_tile(grad_probabilities);
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* p = probabilities_.data() + r * kKeyTile;
      float* d = grad_scores_.data() + r * kKeyTile;
      const float delta = delta_[static_cast<std::size_t>(r)];
#pragma omp simd
      for (std::int64_t c = 0; c < columns; ++c) d[c] = p[c] * (d[c] - delta) * shape_.scale;
    }
    multiply_tile({.a = grad_scores_.data(),
                   .b = key_.data(),
                   .c = grad_queries_.data() + first * group_ * dim_,
                   .rows = rows,
                   .columns = dim_,
                   .inner = columns,
                   .a_stride = kKeyTile,
                   .b_stride = dim_,
                   .c_stride = dim_,
                   .output = Output::kAccumulate});
    if (op_.grad_key == nullptr) return;
    add_transposed(grad_scores_, query_, rows, columns, grad_key_);
    add_transposed(probabilities_, grad_output_, rows, columns, grad_value_);
  }

  // sum [columns, dim] += left [rows, columns]^T right [rows, dim].
  void add_transposed(const std::vector<float>& left, const std::vector<float>& right, std::int64_t rows,
                      std::int64_t columns, std::vector<float>& sum) const {
    multiply_tile({.a = left.data(),
                   .b = right.data(),
                   .c = sum.data(),
                   .rows = columns,
                   .columns = dim_,
                   .inner = rows,
                   .a_stride = 1,
                   .b_stride = dim_,
                   .c_stride = dim_,
                   .a_inner_stride = kKeyTile,
                   .output = Output::kAccumulate});
  }

  void load_rows(std::int64_t first, std::int64_t last, std::int64_t key_begin, std::int64_t columns) {
    const std::int64_t head = kv_head_ * group_;
    for (std::int64_t n = first; n < last; ++n) {
      const std::int64_t at = (n - first) * group_;
      const T* query = static_cast<const T*>(op_.query) + row(n) * shape_.query_stride + head * dim_;
      const std::int64_t offset = row(n) * shape_.output_stride + head * dim_;
      const T* output = static_cast<const T*>(op_.output) + offset;
      widen(query, dim_, group_, dim_, query_.data() + at * dim_, dim_);
      widen(static_cast<const T*>(op_.grad_output) + offset, dim_, group_, dim_, grad_output_.data() + at * dim_, dim_);
      const KeyRange range = visible(shape_, n);
      for (std::int64_t h = 0; h < group_; ++h) {
        const auto r = static_cast<std::size_t>(at + h);
        const float* grad = grad_output_.data() + (at + h) * dim_;
        float delta = 0;
#pragma omp simd reduction(+ : delta)
        for (std::int64_t c = 0; c < dim_; ++c) delta += grad[c] * load(output + h * dim_, c);
        delta_[r] = delta;
        const float log_sum_exp = op_.log_sum_exp[row(n) * shape_.heads + head + h];
        shift_[r] = range.begin == range.end ? 0.0f : log_sum_exp;
        begin_[r] = std::clamp<std::int64_t>(range.begin - key_begin, 0, columns);
        end_[r] = std::clamp<std::int64_t>(range.end - key_begin, 0, columns);
      }
    }
  }

  void add_key_gradients(std::int64_t key_begin, std::int64_t columns) {
    for (std::int64_t c = 0; c < columns; ++c) {
      const std::int64_t offset = ((batch_ * shape_.keys + key_begin + c) * shape_.kv_heads + kv_head_) * dim_;
#pragma omp simd
      for (std::int64_t d = 0; d < dim_; ++d) {
        op_.grad_key[offset + d] += grad_key_[static_cast<std::size_t>(c * dim_ + d)];
        op_.grad_value[offset + d] += grad_value_[static_cast<std::size_t>(c * dim_ + d)];
      }
    }
  }

  void store_grad_queries() {
    for (std::int64_t n = 0; n < shape_.queries; ++n) {
      T* out = static_cast<T*>(op_.grad_query) + row(n) * op_.grad_query_stride + kv_head_ * group_ * dim_;
      const float* in = grad_queries_.data() + n * group_ * dim_;
#pragma omp simd
      for (std::int64_t d = 0; d < group_ * dim_; ++d) store(out, d, in[d]);
    }
  }

  const AttentionBackward& op_;
  const AttentionShape& shape_;
  std::int64_t dim_;
  std::int64_t group_;
  std::int64_t tile_;
  std::int64_t batch_ = 0;
  std::int64_t kv_head_ = 0;
  std::vector<float> grad_queries_, query_, grad_output_, key_, key_transposed_, value_transposed_, grad_key_,
      grad_value_, probabilities_, grad_scores_, delta_, shift_, sums_;
  std::vector<std::int64_t> begin_, end_;
};

template <typename T>
void backward(const AttentionBackward& op) {
  const AttentionShape shape = with_strides(op.shape);
  const std::int64_t jobs = shape.batch * shape.kv_heads;
#pragma omp parallel if (jobs > 1 && shape.queries * shape.keys * shape.heads * shape.head_dim > (1 << 15))
  {
    HeadGroup<T> heads(op, shape);
#pragma omp for schedule(dynamic)
    for (std::int64_t job = 0; job < jobs; ++job) heads.run(job / shape.kv_heads, job % shape.kv_heads);
  }
}

}  // namespace

void run(const AttentionBackward& op) {
  if (op.shape.batch == 0 || op.shape.queries == 0) return;
  with_element_type(op.shape.dtype, "attention_backward", [&]<typename T>(T*) { backward<T>(op); });
}

}  // namespace kvloom::cpu
