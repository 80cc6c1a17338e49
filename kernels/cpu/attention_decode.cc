#include "kernels/cpu/attention_decode.h"

#include <hwy/aligned_allocator.h>

#include <vector>

#include "kernels/cpu/attention_rows.h"
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
        key_rows_(op, item.sequence, item.kv_head),
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

  // Calls visit(i, offset) for rows [0, count) of a block that begins with key `first`.
  template <typename Visit>
  HWY_INLINE void for_rows(std::int64_t first, std::int64_t count, const Visit& visit) const {
    for (std::int64_t i = 0; i < count;) {
      const std::int64_t end = i + key_rows_.run(first + i, count - i);
      for (std::int64_t offset = key_rows_.offset_of(first + i); i < end; ++i, offset += key_rows_.stride()) {
        visit(i, offset);
      }
    }
  }

  // Makes the rows of a block f32 rows of whole vectors, in `rows_`, where they are not that already.
  void load_rows(const void* from, std::int64_t first, std::int64_t count) const {
    if (in_place()) return;
    for_rows(first, count, [&](std::int64_t i, std::int64_t offset) HWY_ATTR {
      widen(from, shape_.dtype, offset, shape_.head_dim, 1.0f, rows_ + i * width_);
    });
  }

  // `count` rows, `stride` apart.
  struct Run {
    const float* rows;
    std::int64_t count;
    std::int64_t stride;
  };
  // The rows of a loaded block, keys [first, first + count), from its i-th on, as far as they lie evenly.
  HWY_INLINE Run run_of(const void* from, std::int64_t first, std::int64_t i, std::int64_t count) const {
    if (!in_place()) return {rows_ + i * width_, count - i, width_};
    return {static_cast<const float*>(from) + key_rows_.offset_of(first + i), key_rows_.run(first + i, count - i),
            key_rows_.stride()};
  }

  // Scores of the group's queries with the keys of a run; a query's are kKeyBlock apart from the next one's. On its
  // own, so that its loops have all registers.
  HWY_NOINLINE void score_keys(Run keys, float* scores) const {
    for (std::int64_t j = 0; j < keys.count; ++j) {
      const float* key = keys.rows + j * keys.stride;
      for (std::int64_t g = 0; g < group_; ++g) scores[g * kKeyBlock + j] = dot(query_ + g * width_, key, width_);
    }
  }

  void absorb(std::int64_t first, std::int64_t count) {
    load_rows(op_.key, first, count);
    for (std::int64_t i = 0; i < count;) {
      const Run run = run_of(op_.key, first, i, count);
      score_keys(run, scores_ + i);
      i += run.count;
    }
    for (std::int64_t g = 0; g < group_; ++g) {
      Softmax state{partial(g)[0], partial(g)[1]};
      absorb_row(scores_ + g * kKeyBlock, kKeyBlock, {0, count}, state, partial(g) + kPartialHeader, width_);
      partial(g)[0] = state.most;
      partial(g)[1] = state.sum;
    }
    load_rows(op_.value, first, count);
    for (std::int64_t i = 0; i < count;) {
      const Run run = run_of(op_.value, first, i, count);
      multiply_tiles({scores_ + i, kKeyBlock, 1}, run.rows, run.stride,
                     {partial(0) + kPartialHeader, partial_size(shape_)}, group_, width_, run.count,
                     Output::kAccumulate);
      i += run.count;
    }
  }

  const AttentionForward& op_;
  const AttentionShape& shape_;
  const DecodeItem& item_;
  KeyRows key_rows_;
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
