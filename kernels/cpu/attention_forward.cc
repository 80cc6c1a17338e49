#include <hwy/aligned_allocator.h>
#include <omp.h>

#include "kernels/cpu/attention_decode.h"
#include "kernels/cpu/attention_span.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_forward.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/attention_tiles-inl.h"

#ifndef KVLOOM_FORWARD_ITEM
#define KVLOOM_FORWARD_ITEM
namespace kvloom::cpu {
namespace {

// One block of queries of every head that reads one KV head.
struct ForwardItem {
  std::int64_t sequence;
  std::int64_t kv_head;
  std::int64_t first_query;
  std::int64_t queries;
};

// Floats of scratch an item needs: query, output and scores of its rows, one key block as it is and turned, softmax.
std::int64_t forward_scratch(const AttentionShape& shape) {
  const std::int64_t rows = shape.heads / shape.kv_heads * kQueryBlock;
  const std::int64_t width = padded(shape.head_dim);
  return rows * (2 * width + kKeyBlock + 2) + 2 * kKeyBlock * width;
}

}  // namespace
}  // namespace kvloom::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

class ForwardBlock {
 public:
  ForwardBlock(const AttentionForward& op, const ForwardItem& item, float* scratch)
      : op_(op),
        shape_(shape_of(op, item.sequence)),
        item_(item),
        group_(op.shape.heads / op.shape.kv_heads),
        rows_(group_ * item.queries),
        width_(padded(op.shape.head_dim)),
        query_(scratch),
        output_(query_ + rows_ * width_),
        scores_(output_ + rows_ * width_),
        turned_(scores_ + rows_ * kKeyBlock),
        values_(turned_ + kKeyBlock * width_),
        softmax_(reinterpret_cast<Softmax*>(values_ + kKeyBlock * width_)) {}

  void run() {
    load_queries();
    const Span keys = visible_keys(shape_, item_.first_query, item_.first_query + item_.queries);
    for (std::int64_t first = keys.begin; first < keys.end; first += kKeyBlock) {
      absorb(first, std::min(kKeyBlock, keys.end - first));
    }
    store();
  }

 private:
  std::int64_t row_of_query(std::int64_t query) const {
    return item_.sequence * shape_.queries + item_.first_query + query;
  }
  std::int64_t head(std::int64_t in_group) const { return item_.kv_head * group_ + in_group; }

  void load_queries() {
    for (std::int64_t g = 0; g < group_; ++g) {
      for (std::int64_t n = 0; n < item_.queries; ++n) {
        const std::int64_t at = row_of_query(n) * shape_.query_stride + head(g) * shape_.head_dim;
        widen(op_.query, shape_.dtype, at, shape_.head_dim, shape_.scale, query_ + (g * item_.queries + n) * width_);
      }
    }
    std::fill(output_, output_ + rows_ * width_, 0.0f);
    std::fill(softmax_, softmax_ + rows_, Softmax());
  }

  void load_rows(const void* from, std::int64_t first, std::int64_t count, float* to) const {
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t at =
          item_.sequence * shape_.key_batch_stride + (first + j) * shape_.key_stride + item_.kv_head * shape_.head_dim;
      widen(from, shape_.dtype, at, shape_.head_dim, 1.0f, to + j * width_);
    }
  }

  void absorb(std::int64_t first, std::int64_t count) {
    load_rows(op_.key, first, count, values_);
    turn(values_, count, shape_.head_dim, width_, turned_);
    multiply_tiles({query_, width_, 1}, turned_, kKeyBlock, {scores_, kKeyBlock}, rows_, kKeyBlock, shape_.head_dim,
                   Output::kOverwrite);
    for (std::int64_t row = 0; row < rows_; ++row) {
      const Span span = visible_keys(shape_, item_.first_query + row % item_.queries);
      absorb_row(scores_ + row * kKeyBlock, kKeyBlock, within_block(span, first, count), softmax_[row],
                 output_ + row * width_, width_);
    }
    load_rows(op_.value, first, count, values_);
    multiply_tiles({scores_, kKeyBlock, 1}, values_, width_, {output_, width_}, rows_, width_, count,
                   Output::kAccumulate);
  }

  void store() const {
    for (std::int64_t row = 0; row < rows_; ++row) {
      const std::int64_t token = row_of_query(row % item_.queries);
      const std::int64_t to_head = head(row / item_.queries);
      const Softmax& state = softmax_[row];
      narrow(output_ + row * width_, shape_.head_dim, state.sum == 0 ? 0.0f : 1.0f / state.sum, op_.output,
             shape_.dtype, token * shape_.output_stride + to_head * shape_.head_dim);
      if (op_.log_sum_exp != nullptr) {
        op_.log_sum_exp[token * shape_.heads + to_head] =
            state.sum == 0 ? kMinusInfinity : state.most + std::log(state.sum);
      }
    }
  }

  const AttentionForward& op_;
  AttentionShape shape_;
  const ForwardItem& item_;
  std::int64_t group_;
  std::int64_t rows_;
  std::int64_t width_;
  float* query_;   // [group * queries, width], scaled
  float* output_;  // the same
  float* scores_;  // [group * queries, kKeyBlock]
  float* turned_;  // keys [width, kKeyBlock]
  float* values_;  // keys, then values [kKeyBlock, width]
  Softmax* softmax_;
};

void forward_item(const AttentionForward& op, const ForwardItem& item, float* scratch) {
  ForwardBlock(op, item, scratch).run();
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(forward_item);
}

void run(const AttentionForward& given) {
  AttentionForward op = given;
  op.shape = with_strides(op.shape);
  const AttentionShape& shape = op.shape;
  if (shape.batch == 0 || shape.queries == 0 || shape.heads == 0) return;
  if (shape.queries == 1) return attend_single_query(op);
  const std::int64_t blocks = blocks_of(shape.queries, kQueryBlock);
  const std::int64_t items = shape.batch * shape.kv_heads * blocks;
  const std::int64_t each = padded(forward_scratch(shape));
  const auto scratch = hwy::AllocateAligned<float>(static_cast<std::size_t>(each * omp_get_max_threads()));
  if (scratch == nullptr) fail("attention forward: no memory for {} floats of scratch a thread", each);
  const auto forward = HWY_DYNAMIC_DISPATCH(forward_item);
#pragma omp parallel for schedule(dynamic) if (is_worth_threads(op))
  for (std::int64_t index = 0; index < items; ++index) {
    // The last queries see the most: they start first.
    const std::int64_t first = (blocks - 1 - index % blocks) * kQueryBlock;
    const std::int64_t pair = index / blocks;
    const ForwardItem item{pair / shape.kv_heads, pair % shape.kv_heads, first,
                           std::min(kQueryBlock, shape.queries - first)};
    forward(op, item, scratch.get() + each * omp_get_thread_num());
  }
}

}  // namespace kvloom::cpu
#endif
