#include "kernels/cpu/attention_decode.h"

#include <hwy/aligned_allocator.h>
#include <hwy/cache_control.h>

#include <vector>

#include "kernels/cpu/attention_span.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_decode.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/attention_tiles-inl.h"

#ifndef KVLOOM_DECODE_ITEM
#define KVLOOM_DECODE_ITEM
namespace kvloom::cpu {
namespace {

// Keys of one KV head are cut into ranges of this many, whatever the threads, so that sums have one order.
constexpr std::int64_t kRange = 512;

struct DecodeItem {
  std::int64_t sequence;
  std::int64_t kv_head;
  Span keys;
};

// The items of all pairs of a sequence and a KV head, the ranges of a pair side by side.
struct DecodeItems {
  std::vector<DecodeItem> items;
  std::vector<std::int64_t> first_of_pair;  // one more than there are pairs
};

// What one item leaves for one head: {maximum, denominator, 14 unused, weighted values [width]}.
constexpr std::int64_t kPartialHeader = 16;
std::int64_t partial_size(const AttentionShape& shape) { return kPartialHeader + padded(shape.head_dim); }

// The group's queries and scores of one block, after its partial results.
std::int64_t decode_scratch(const AttentionShape& shape) {
  return shape.heads / shape.kv_heads * (partial_size(shape) + padded(shape.head_dim) + kKeyBlock) +
         kKeyBlock * padded(shape.head_dim);
}

}  // namespace
}  // namespace kvloom::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

HWY_INLINE float dot(const float* HWY_RESTRICT a, const float* b, std::int64_t count) {
  const Floats d;
  Vector sum = hn::Zero(d);
  for (std::int64_t i = 0; i < count; i += lanes()) sum = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

HWY_INLINE void add_scaled(const float* from, float factor, std::int64_t count, float* HWY_RESTRICT to) {
  const Floats d;
  for (std::int64_t i = 0; i < count; i += lanes()) {
    hn::StoreU(hn::MulAdd(hn::LoadU(d, from + i), hn::Set(d, factor), hn::LoadU(d, to + i)), d, to + i);
  }
}

class DecodeRange {
 public:
  DecodeRange(const AttentionForward& op, const DecodeItem& item, float* partials)
      : op_(op),
        shape_(op.shape),
        item_(item),
        group_(op.shape.heads / op.shape.kv_heads),
        width_(padded(op.shape.head_dim)),
        partials_(partials),
        query_(partials_ + group_ * partial_size(shape_)),
        scores_(query_ + group_ * width_),
        rows_(scores_ + group_ * kKeyBlock) {}

  void run() {
    for (std::int64_t g = 0; g < group_; ++g) {
      const std::int64_t head = item_.kv_head * group_ + g;
      widen(op_.query, shape_.dtype, item_.sequence * shape_.query_stride + head * shape_.head_dim, shape_.head_dim,
            shape_.scale, query_ + g * width_);
      std::fill(partial(g), partial(g) + partial_size(shape_), 0.0f);
      partial(g)[0] = kMinusInfinity;
    }
    for (std::int64_t first = item_.keys.begin; first < item_.keys.end; first += kKeyBlock) {
      absorb(first, std::min(kKeyBlock, item_.keys.end - first));
    }
  }

 private:
  float* partial(std::int64_t g) const { return partials_ + g * partial_size(shape_); }

  bool in_place() const { return shape_.dtype == DType::kF32 && width_ == shape_.head_dim; }

  std::int64_t offset_of(std::int64_t key) const {
    return item_.sequence * shape_.key_batch_stride + key * shape_.key_stride + item_.kv_head * shape_.head_dim;
  }

  // Asks for the rows of a block: they lie far apart, where hardware does not foresee them.
  void prefetch(const void* from, std::int64_t first, std::int64_t count) const {
    constexpr std::int64_t kCacheLine = 64;
    const std::int64_t bytes = shape_.head_dim * static_cast<std::int64_t>(size_of(shape_.dtype));
    for (std::int64_t j = 0; j < count; ++j) {
      const auto* row = static_cast<const char*>(advance(from, shape_.dtype, offset_of(first + j)));
      for (std::int64_t at = 0; at < bytes; at += kCacheLine) hwy::Prefetch(row + at);
    }
  }

  // Rows of a block as whole f32 vectors: in place where they are that already, else widened into `rows_`.
  const float* rows_of(const void* from, std::int64_t first, std::int64_t count) const {
    if (in_place()) return static_cast<const float*>(from) + offset_of(first);
    for (std::int64_t j = 0; j < count; ++j) {
      widen(from, shape_.dtype, offset_of(first + j), shape_.head_dim, 1.0f, rows_ + j * width_);
    }
    return rows_;
  }

  void absorb(std::int64_t first, std::int64_t count) {
    const std::int64_t next = std::min(first + kKeyBlock, item_.keys.end);
    const std::int64_t after = std::min(kKeyBlock, item_.keys.end - next);
    const float* keys = rows_of(op_.key, first, count);
    const std::int64_t key_stride = in_place() ? shape_.key_stride : width_;
    prefetch(op_.value, first, count);
    for (std::int64_t j = 0; j < count; ++j) {
      const float* key = keys + j * key_stride;
      for (std::int64_t g = 0; g < group_; ++g) scores_[g * kKeyBlock + j] = dot(query_ + g * width_, key, width_);
    }
    for (std::int64_t g = 0; g < group_; ++g) {
      Softmax state{partial(g)[0], partial(g)[1]};
      absorb_row(scores_ + g * kKeyBlock, kKeyBlock, {0, count}, state, partial(g) + kPartialHeader, width_);
      partial(g)[0] = state.most;
      partial(g)[1] = state.sum;
    }
    prefetch(op_.key, next, after);
    const float* values = rows_of(op_.value, first, count);
    multiply_tiles({scores_, kKeyBlock, 1}, values, key_stride, {partial(0) + kPartialHeader, partial_size(shape_)},
                   group_, width_, count, Output::kAccumulate);
  }

  const AttentionForward& op_;
  const AttentionShape& shape_;
  const DecodeItem& item_;
  std::int64_t group_;
  std::int64_t width_;
  float* partials_;
  float* query_;   // [group, width], scaled
  float* scores_;  // [group, kKeyBlock]
  float* rows_;    // [kKeyBlock, width]
};

void decode_item(const AttentionForward& op, const DecodeItem& item, float* scratch) {
  DecodeRange(op, item, scratch).run();
}

// Joins the ranges' partial results for head g of a group into its output.
void join_ranges(const AttentionForward& op, std::int64_t sequence, std::int64_t head, float* partials,
                 std::int64_t ranges, std::int64_t stride) {
  Softmax whole;
  for (std::int64_t r = 0; r < ranges; ++r) whole.most = std::max(whole.most, partials[r * stride]);
  const std::int64_t width = padded(op.shape.head_dim);
  float* total = partials + kPartialHeader;
  for (std::int64_t r = 0; r < ranges; ++r) {
    const float* part = partials + r * stride;
    const float keep = part[0] == kMinusInfinity ? 0.0f : std::exp(part[0] - whole.most);
    whole.sum += part[1] * keep;
    if (r == 0) {
      multiply_row(total, width, keep);
    } else {
      add_scaled(part + kPartialHeader, keep, width, total);
    }
  }
  const bool sees_nothing = whole.sum == 0;
  narrow(total, op.shape.head_dim, sees_nothing ? 0.0f : 1.0f / whole.sum, op.output, op.shape.dtype,
         sequence * op.shape.output_stride + head * op.shape.head_dim);
  if (op.log_sum_exp != nullptr) {
    op.log_sum_exp[sequence * op.shape.heads + head] = sees_nothing ? kMinusInfinity : whole.most + std::log(whole.sum);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(decode_item);
HWY_EXPORT(join_ranges);

// A sequence that sees nothing has one range without keys.
DecodeItems decode_items(const AttentionForward& op) {
  const AttentionShape& shape = op.shape;
  DecodeItems result;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    const Span seen = visible_keys(shape_of(op, b), 0);
    const std::int64_t ranges = std::max<std::int64_t>(1, blocks_of(seen.end - seen.begin, kRange));
    for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
      result.first_of_pair.push_back(std::ssize(result.items));
      for (std::int64_t r = 0; r < ranges; ++r) {
        const std::int64_t first = seen.begin + r * kRange;
        result.items.push_back({b, h, {first, std::min(seen.end, first + kRange)}});
      }
    }
  }
  result.first_of_pair.push_back(std::ssize(result.items));
  return result;
}

}  // namespace

void attend_single_query(const AttentionForward& op) {
  const AttentionShape& shape = op.shape;
  const auto [items, first_of_pair] = decode_items(op);
  const std::int64_t count = std::ssize(items);
  const std::int64_t each = padded(decode_scratch(shape));
  const auto scratch = hwy::AllocateAligned<float>(static_cast<std::size_t>(count * each));
  if (scratch == nullptr) fail("attention decode: no memory for {} floats of scratch", count * each);
  const auto decode = HWY_DYNAMIC_DISPATCH(decode_item);
#pragma omp parallel for schedule(static) if (is_worth_threads(op))
  for (std::int64_t index = 0; index < count; ++index) {
    decode(op, items[static_cast<std::size_t>(index)], scratch.get() + index * each);
  }
  const auto join = HWY_DYNAMIC_DISPATCH(join_ranges);
  const std::int64_t group = shape.heads / shape.kv_heads;
  for (std::int64_t index = 0; index < shape.batch * shape.heads; ++index) {
    const auto pair = static_cast<std::size_t>(index / group);
    join(op, index / shape.heads, index % shape.heads,
         scratch.get() + first_of_pair[pair] * each + index % group * partial_size(shape),
         first_of_pair[pair + 1] - first_of_pair[pair], each);
  }
}

}  // namespace kvloom::cpu
#endif
