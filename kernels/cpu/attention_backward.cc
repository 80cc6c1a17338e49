#include <hwy/aligned_allocator.h>
#include <omp.h>

#include "kernels/cpu/attention_span.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_backward.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/attention_tiles-inl.h"

#ifndef KVLOOM_BACKWARD_ITEM
#define KVLOOM_BACKWARD_ITEM
namespace kvloom::cpu {
namespace {

// All that one KV head of one sequence takes part in: its gradients have one writer, and one order of sums.
struct BackwardItem {
  std::int64_t sequence;
  std::int64_t kv_head;
};

std::int64_t backward_scratch(const AttentionShape& shape) {
  const std::int64_t rows = shape.heads / shape.kv_heads * shape.queries;
  const std::int64_t width = padded(shape.head_dim);
  return rows * (3 * width + 1) + kKeyBlock * width * 6 + 2 * kQueryBlock * kKeyBlock;
}

}  // namespace
}  // namespace kvloom::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

// weights = exp(weights - log_sum_exp) within `span` and zero elsewhere; slopes = weights * (slopes - delta).
void softmax_backward_row(float* weights, float* slopes, Span span, float log_sum_exp, float delta) {
  const Floats d;
  std::fill(slopes, slopes + span.begin, 0.0f);
  std::fill(slopes + span.end, slopes + kKeyBlock, 0.0f);
  if (span.begin >= span.end) {
    std::fill(weights, weights + kKeyBlock, 0.0f);
    std::fill(slopes, slopes + kKeyBlock, 0.0f);
    return;
  }
  std::fill(weights, weights + span.begin, kMinusInfinity);
  std::fill(weights + span.end, weights + kKeyBlock, kMinusInfinity);
  for (std::int64_t i = 0; i < kKeyBlock; i += lanes()) {
    const Vector weight = exponential(hn::Sub(hn::LoadU(d, weights + i), fill(log_sum_exp)));
    hn::StoreU(weight, d, weights + i);
    hn::StoreU(hn::Mul(weight, hn::Sub(hn::LoadU(d, slopes + i), hn::Set(d, delta))), d, slopes + i);
  }
}

class BackwardHead {
 public:
  BackwardHead(const AttentionBackward& op, const BackwardItem& item, float* scratch)
      : op_(op),
        shape_(op.shape),
        item_(item),
        group_(op.shape.heads / op.shape.kv_heads),
        rows_(group_ * op.shape.queries),
        width_(padded(op.shape.head_dim)),
        query_(scratch),
        grad_output_(query_ + rows_ * width_),
        grad_query_(grad_output_ + rows_ * width_),
        key_(grad_query_ + rows_ * width_),
        value_(key_ + kKeyBlock * width_),
        turned_key_(value_ + kKeyBlock * width_),
        turned_value_(turned_key_ + kKeyBlock * width_),
        grad_key_(turned_value_ + kKeyBlock * width_),
        grad_value_(grad_key_ + kKeyBlock * width_),
        weights_(grad_value_ + kKeyBlock * width_),
        slopes_(weights_ + kQueryBlock * kKeyBlock),
        delta_(slopes_ + kQueryBlock * kKeyBlock) {}

  void run() {
    load_queries();
    const Span keys = visible_keys(shape_, 0, shape_.queries);
    for (std::int64_t first = keys.begin; first < keys.end; first += kKeyBlock) {
      differentiate_keys(first, std::min(kKeyBlock, keys.end - first));
    }
    store_grad_query();
  }

 private:
  std::int64_t token(std::int64_t query) const { return item_.sequence * shape_.queries + query; }
  std::int64_t head(std::int64_t in_group) const { return item_.kv_head * group_ + in_group; }

  // Queries (scaled), output gradients, and delta: the dot product of output and its gradient.
  void load_queries() {
    for (std::int64_t row = 0; row < rows_; ++row) {
      const std::int64_t n = token(row % shape_.queries);
      const std::int64_t column = head(row / shape_.queries) * shape_.head_dim;
      float* grad = grad_output_ + row * width_;
      widen(op_.query, shape_.dtype, n * shape_.query_stride + column, shape_.head_dim, shape_.scale,
            query_ + row * width_);
      widen(op_.grad_output, shape_.dtype, n * shape_.output_stride + column, shape_.head_dim, 1.0f, grad);
      float* output = key_;  // not in use yet
      widen(op_.output, shape_.dtype, n * shape_.output_stride + column, shape_.head_dim, 1.0f, output);
      float delta = 0;
      for (std::int64_t i = 0; i < shape_.head_dim; ++i) delta += output[i] * grad[i];
      delta_[row] = delta;
    }
    std::fill(grad_query_, grad_query_ + rows_ * width_, 0.0f);
  }

  void load_block(const void* from, std::int64_t first, std::int64_t count, float* to, float* turned) const {
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t at =
          item_.sequence * shape_.key_batch_stride + (first + j) * shape_.key_stride + item_.kv_head * shape_.head_dim;
      widen(from, shape_.dtype, at, shape_.head_dim, 1.0f, to + j * width_);
    }
    turn(to, count, shape_.head_dim, width_, turned);
  }

  // Whether some query of [first, last) sees some key of the block.
  bool meets(std::int64_t first_query, std::int64_t last_query, std::int64_t first_key, std::int64_t count) const {
    const Span seen = visible_keys(shape_, first_query, last_query);
    return seen.begin < first_key + count && seen.end > first_key;
  }

  void differentiate_keys(std::int64_t first, std::int64_t count) {
    load_block(op_.key, first, count, key_, turned_key_);
    load_block(op_.value, first, count, value_, turned_value_);
    std::fill(grad_key_, grad_key_ + kKeyBlock * width_, 0.0f);
    std::fill(grad_value_, grad_value_ + kKeyBlock * width_, 0.0f);
    for (std::int64_t query = 0; query < shape_.queries; query += kQueryBlock) {
      const std::int64_t queries = std::min(kQueryBlock, shape_.queries - query);
      if (!meets(query, query + queries, first, count)) continue;
      for (std::int64_t g = 0; g < group_; ++g) differentiate_tile(g, query, queries, first, count);
    }
    add_grad(grad_key_, first, count, op_.grad_key);
    add_grad(grad_value_, first, count, op_.grad_value);
  }

  void differentiate_tile(std::int64_t g, std::int64_t query, std::int64_t queries, std::int64_t first,
                          std::int64_t count) {
    const std::int64_t row = g * shape_.queries + query;
    const float* q = query_ + row * width_;
    const float* grad = grad_output_ + row * width_;
    multiply_tiles({q, width_, 1}, turned_key_, kKeyBlock, {weights_, kKeyBlock}, queries, kKeyBlock, shape_.head_dim,
                   Output::kOverwrite);
    multiply_tiles({grad, width_, 1}, turned_value_, kKeyBlock, {slopes_, kKeyBlock}, queries, kKeyBlock,
                   shape_.head_dim, Output::kOverwrite);
    for (std::int64_t n = 0; n < queries; ++n) {
      const Span span = within_block(visible_keys(shape_, query + n), first, count);
      softmax_backward_row(weights_ + n * kKeyBlock, slopes_ + n * kKeyBlock, span,
                           op_.log_sum_exp[token(query + n) * shape_.heads + head(g)], delta_[row + n]);
    }
    multiply_tiles({slopes_, kKeyBlock, 1}, key_, width_, {grad_query_ + row * width_, width_}, queries, width_, count,
                   Output::kAccumulate);
    if (op_.grad_key == nullptr) return;
    multiply_tiles({slopes_, 1, kKeyBlock}, q, width_, {grad_key_, width_}, count, width_, queries,
                   Output::kAccumulate);
    multiply_tiles({weights_, 1, kKeyBlock}, grad, width_, {grad_value_, width_}, count, width_, queries,
                   Output::kAccumulate);
  }

  void add_grad(const float* block, std::int64_t first, std::int64_t count, float* to) const {
    if (to == nullptr) return;
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t key = item_.sequence * shape_.keys + first + j;
      float* row = to + (key * shape_.kv_heads + item_.kv_head) * shape_.head_dim;
      for (std::int64_t i = 0; i < shape_.head_dim; ++i) row[i] += block[j * width_ + i];
    }
  }

  void store_grad_query() const {
    for (std::int64_t row = 0; row < rows_; ++row) {
      const std::int64_t at =
          token(row % shape_.queries) * op_.grad_query_stride + head(row / shape_.queries) * shape_.head_dim;
      narrow(grad_query_ + row * width_, shape_.head_dim, shape_.scale, op_.grad_query, shape_.dtype, at);
    }
  }

  const AttentionBackward& op_;
  const AttentionShape& shape_;
  const BackwardItem& item_;
  std::int64_t group_;
  std::int64_t rows_;
  std::int64_t width_;
  float* query_;         // [group, queries, width], scaled
  float* grad_output_;   // the same shape
  float* grad_query_;    // the same shape
  float* key_;           // [kKeyBlock, width]
  float* value_;         // [kKeyBlock, width]
  float* turned_key_;    // [width, kKeyBlock]
  float* turned_value_;  // [width, kKeyBlock]
  float* grad_key_;      // [kKeyBlock, width]
  float* grad_value_;    // [kKeyBlock, width]
  float* weights_;       // [kQueryBlock, kKeyBlock]: scores, then the softmax
  float* slopes_;        // [kQueryBlock, kKeyBlock]: gradients of weights, then of scores
  float* delta_;         // [group, queries]
};

void backward_item(const AttentionBackward& op, const BackwardItem& item, float* scratch) {
  BackwardHead(op, item, scratch).run();
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(backward_item);
}

void run(const AttentionBackward& given) {
  AttentionBackward op = given;
  op.shape = with_strides(op.shape);
  const AttentionShape& shape = op.shape;
  if (op.grad_query_stride == 0) op.grad_query_stride = shape.heads * shape.head_dim;
  if (shape.batch == 0 || shape.queries == 0 || shape.heads == 0) return;
  const std::int64_t items = shape.batch * shape.kv_heads;
  const std::int64_t each = padded(backward_scratch(shape));
  const std::int64_t threads = is_worth_threads(shape) ? std::min<std::int64_t>(items, omp_get_max_threads()) : 1;
  const auto scratch = hwy::AllocateAligned<float>(static_cast<std::size_t>(each * threads));
  if (scratch == nullptr) fail("attention backward: no memory for {} floats of scratch a thread", each);
  const auto backward = HWY_DYNAMIC_DISPATCH(backward_item);
#pragma omp parallel for schedule(dynamic) num_threads(static_cast <int>(threads))
  for (std::int64_t index = 0; index < items; ++index) {
    backward(op, {index / shape.kv_heads, index % shape.kv_heads}, scratch.get() + each * omp_get_thread_num());
  }
}

}  // namespace kvloom::cpu
#endif
