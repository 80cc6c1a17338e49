// One item of a ragged attention: queries of a sequence over blocks of keys, by the products that `Math` has.
// Included once for every instruction set.
#if defined(KVLOOM_RAGGED_BLOCK_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVLOOM_RAGGED_BLOCK_INL
#undef KVLOOM_RAGGED_BLOCK_INL
#else
#define KVLOOM_RAGGED_BLOCK_INL
#endif

#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/cpu/attention_tiles-inl.h"
#include "kernels/cpu/ragged_items.h"
#include "kernels/cpu/ragged_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr int kBlockVectors = static_cast<int>(kKeyBlock) / (HWY_MAX_BYTES >= 64 ? 16 : HWY_MAX_BYTES / 4);

HWY_INLINE void store_weights(Vector weights, float* to) { hn::Store(weights, Floats(), to); }

// Rounds to the nearest, halves up: weights are no less than zero, and what is not a number here stays so.
HWY_INLINE void store_weights(Vector weights, BFloat16* to) {
  const hn::Rebind<std::uint16_t, Floats> halves;
  const hn::RebindToUnsigned<Floats> words;
  const auto bits = hn::Add(hn::BitCast(words, weights), hn::Set(words, 0x8000));
  hn::Store(hn::TruncateTo(halves, hn::ShiftRight<16>(bits)), halves, reinterpret_cast<std::uint16_t*>(to));
}

// How far scores may lie above the state's reference before it moves: weights up to e^8 are as precise as those below
// 1, and most blocks then find no new reference and rescale nothing.
constexpr float kSlack = 8;

// The reference of a state after a block with scores of at most `most`, lane by lane; the state's sums are rescaled to
// it.
HWY_INLINE Vector move_reference(Vector most, float* state, std::int64_t state_size) {
  const Floats d;
  const Vector old = fill(state[0]);
  if (hn::AllFalse(d, hn::Gt(most, hn::Add(old, fill(kSlack))))) return old;
  const Vector reference = hn::Max(old, hn::MaxOfLanes(d, most));
  // Of nothing before there is nothing to keep: e^-infinity.
  const float keep = hn::GetLane(exponential(hn::Sub(old, reference)));
  state[0] = hn::GetLane(reference);
  multiply_row(state + kRowSums, state_size - kRowSums, keep);
  return reference;
}

// Takes a row's scores, times `factors`, in the online softmax: weights (=) [kKeyBlock], times `value_factors` where
// there are any. Only offsets in `span`, which is not empty, count.
template <typename Left>
HWY_INLINE void absorb_scores(const float* scores, const float* factors, const float* value_factors, Span span,
                              float* state, std::int64_t state_size, Left* weights) {
  const Floats d;
  Vector x[kBlockVectors];
  Vector most = fill(kMinusInfinity);
  const bool whole = span.begin == 0 && span.end == kKeyBlock;
  for (int v = 0; v < kBlockVectors; ++v) {
    x[v] = hn::Mul(hn::Load(d, scores + v * lanes()), hn::Load(d, factors + v * lanes()));
    if (!whole) {
      const Vector offset = hn::Iota(d, static_cast<float>(v * lanes()));
      const auto counts = hn::And(hn::Ge(offset, fill(static_cast<float>(span.begin))),
                                  hn::Lt(offset, fill(static_cast<float>(span.end))));
      x[v] = hn::IfThenElse(counts, x[v], fill(kMinusInfinity));
    }
    most = hn::Max(most, x[v]);
  }
  const Vector reference = move_reference(most, state, state_size);
  constexpr int kSumVectors = kBlockVectors * static_cast<int>(kSumLanes) / static_cast<int>(kKeyBlock);
  Vector sums[kSumVectors];
  for (int v = 0; v < kSumVectors; ++v) sums[v] = hn::Load(d, state + kRowSums + v * lanes());
  for (int v = 0; v < kBlockVectors; ++v) {
    Vector weight = exponential(hn::Sub(x[v], reference));
    sums[v % kSumVectors] = hn::Add(sums[v % kSumVectors], weight);
    if (value_factors != nullptr) weight = hn::Mul(weight, hn::Load(d, value_factors + v * lanes()));
    store_weights(weight, weights + v * lanes());
  }
  for (int v = 0; v < kSumVectors; ++v) hn::Store(sums[v], d, state + kRowSums + v * lanes());
}

HWY_INLINE void clear_state(float* state, std::int64_t size) {
  std::fill(state, state + size, 0.0f);
  state[0] = kMinusInfinity;
}

// `total` takes in what a later range of keys left.
HWY_INLINE void join_state(const float* part, std::int64_t size, float* total) {
  if (part[0] == kMinusInfinity) return;
  if (total[0] == kMinusInfinity) {
    std::copy(part, part + size, total);
    return;
  }
  const Floats d;
  const float most = std::max(total[0], part[0]);
  const float keep = std::exp(total[0] - most);
  const float take = std::exp(part[0] - most);
  total[0] = most;
  for (std::int64_t i = kRowSums; i < size; i += lanes()) {
    const Vector kept = hn::Mul(hn::LoadU(d, total + i), hn::Set(d, keep));
    hn::StoreU(hn::MulAdd(hn::LoadU(d, part + i), hn::Set(d, take), kept), d, total + i);
  }
}

HWY_INLINE void write_output(const RaggedAttention& op, const float* state, std::int64_t row, std::int64_t head) {
  const Floats d;
  Vector sums = hn::Load(d, state + kRowSums);
  for (std::int64_t i = lanes(); i < kSumLanes; i += lanes()) sums = hn::Add(sums, hn::Load(d, state + kRowSums + i));
  const float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  narrow(state + kRowValues, op.head_dim, sum == 0 ? 0.0f : 1.0f / sum, op.output, op.dtype,
         row * op.output_stride + head * op.head_dim);
}

// Rows that meet a block of keys at once, so that their scores stay close.
constexpr std::int64_t kRowsAtOnce = 32;

template <typename Math>
class RaggedBlock {
 public:
  using Left = typename Math::Left;

  RaggedBlock(const RaggedAttention& op, const RaggedItem& item, Math& math, char* scratch)
      : op_(op),
        item_(item),
        math_(math),
        sequence_(op.sequences[static_cast<std::size_t>(item.sequence)]),
        key_places_(op, sequence_.pages),
        value_places_(op, sequence_.value_pages == nullptr ? sequence_.pages : sequence_.value_pages),
        group_(op.heads / op.kv_heads),
        rows_((item.last_query - item.first_query) * group_),
        left_width_(round_up_to(op.head_dim, Math::kLeftMultiple)),
        size_(row_state_size(op)) {
    const std::int64_t all = rows_ * (item.last_head - item.first_head);
    states_ = reinterpret_cast<float*>(scratch);
    // Of one range nothing is joined.
    totals_ = item.keys.end <= (item.keys.begin / kKeyRange + 1) * kKeyRange ? states_ : states_ + all * size_;
    scores_ = states_ + 2 * all * size_;
    key_factors_ = scores_ + 2 * kRowsAtOnce * kKeyBlock;
    value_factors_ = key_factors_ + kKeyBlock;
    query_ = reinterpret_cast<Left*>(value_factors_ + kKeyBlock);
    weights_ = query_ + round_up_to(all * left_width_, 64);
    keys_ = reinterpret_cast<char*>(weights_ + kRowsAtOnce * kKeyBlock);
    values_ = keys_ + Math::packed_bytes(op.head_dim);
  }

  // Of an item of the call with `heads` KV heads.
  static std::int64_t scratch_bytes(const RaggedAttention& op, std::int64_t heads) {
    const std::int64_t group = op.heads / op.kv_heads;
    const std::int64_t all = std::max({kItemRows, group, kFewQueries * group * heads});
    const std::int64_t floats = 2 * all * row_state_size(op) + 2 * kRowsAtOnce * kKeyBlock + 2 * kKeyBlock;
    const std::int64_t lefts =
        round_up_to(all * round_up_to(op.head_dim, Math::kLeftMultiple), 64) + kRowsAtOnce * kKeyBlock;
    return floats * 4 + lefts * static_cast<std::int64_t>(sizeof(Left)) + 2 * Math::packed_bytes(op.head_dim);
  }

  void run() {
    for_heads([&](std::int64_t head) {
      load_queries(head);
      for (std::int64_t row = 0; row < rows_; ++row) clear_state(total(head, row), size_);
    });
    for (std::int64_t begin = item_.keys.begin; begin < item_.keys.end;) {
      const std::int64_t end = std::min(item_.keys.end, (begin / kKeyRange + 1) * kKeyRange);
      absorb_range({begin, end});
      begin = end;
    }
    for_heads([&](std::int64_t head) { leave(head); });
  }

 private:
  // Rows of a block's keys, and of their values where those lie elsewhere, as KeyBlock has them.
  struct BlockPlaces {
    std::int64_t keys[kKeyBlock];
    std::int64_t values[kKeyBlock];
  };

  template <typename Visit>
  HWY_INLINE void for_heads(const Visit& visit) {
    for (std::int64_t head = item_.first_head; head < item_.last_head; ++head) visit(head);
  }

  std::int64_t index(std::int64_t head, std::int64_t row) const { return (head - item_.first_head) * rows_ + row; }
  float* state(std::int64_t head, std::int64_t row) const { return states_ + index(head, row) * size_; }
  float* total(std::int64_t head, std::int64_t row) const { return totals_ + index(head, row) * size_; }
  Left* query(std::int64_t head, std::int64_t row) const { return query_ + index(head, row) * left_width_; }
  // Of the call.
  std::int64_t token(std::int64_t row) const { return sequence_.first_row + item_.first_query + row / group_; }
  Span seen(std::int64_t row) const {
    return visible_keys(op_, sequence_.first_position + item_.first_query + row / group_);
  }

  void load_queries(std::int64_t head) {
    for (std::int64_t row = 0; row < rows_; ++row) {
      const std::int64_t at = token(row) * op_.query_stride + (head * group_ + row % group_) * op_.head_dim;
      math_.load_query(op_, at, query(head, row));
    }
  }

  void absorb_range(Span keys) {
    for_heads([&](std::int64_t head) {
      for (std::int64_t row = 0; row < rows_; ++row) clear_state(state(head, row), size_);
    });
    // Blocks begin at multiples of their size, whatever is seen of the first.
    BlockPlaces blocks[2];
    BlockPlaces* places = &blocks[0];
    BlockPlaces* next = &blocks[1];
    const std::int64_t begin = keys.begin / kKeyBlock * kKeyBlock;
    find_rows(begin, *places);
    for (std::int64_t first = begin; first < keys.end; first += kKeyBlock) {
      const std::int64_t count = find_rows(first + kKeyBlock, *next);
      for_heads([&](std::int64_t head) {
        absorb({op_, places->keys, values_of(*places), head, first, std::max<std::int64_t>(0, keys.begin - first),
                std::min(kKeyBlock, keys.end - first)},
               fetch_share(*next, count, head));
      });
      std::swap(places, next);
    }
    if (totals_ == states_) return;
    for_heads([&](std::int64_t head) {
      for (std::int64_t row = 0; row < rows_; ++row) join_state(state(head, row), size_, total(head, row));
    });
  }

  // places (=) as KeyBlock has them, of the block's keys that the item reads; returns where they end.
  std::int64_t find_rows(std::int64_t first, BlockPlaces& places) const {
    const Span read = within_block(item_.keys, first, kKeyBlock);
    for (std::int64_t j = read.begin; j < read.end; ++j) {
      places.keys[j] = key_places_.row_of(first + j) * op_.kv_heads;
    }
    for (std::int64_t j = read.begin; j < read.end && has_value_pages(); ++j) {
      places.values[j] = value_places_.row_of(first + j) * op_.kv_heads;
    }
    return read.end;
  }

  bool has_value_pages() const { return sequence_.value_pages != nullptr; }
  const std::int64_t* values_of(const BlockPlaces& places) const {
    return has_value_pages() ? places.values : places.keys;
  }

  // The block after, whole rows in their order: each head fetches its share of them.
  FetchRows fetch_share(const BlockPlaces& places, std::int64_t count, std::int64_t head) const {
    const std::int64_t heads = item_.last_head - item_.first_head;
    const std::int64_t n = head - item_.first_head;
    const std::int64_t begin = count * n / heads;
    return {op_,  places.keys + begin, values_of(places) + begin, count * (n + 1) / heads - begin, item_.first_head,
            heads};
  }

  Span seen_of(const KeyBlock& block, std::int64_t row) const {
    return within_block(seen(row), block.first, kKeyBlock);
  }
  bool sees(const KeyBlock& block, std::int64_t row) const {
    const Span span = seen_of(block, row);
    return span.begin < span.end;
  }

  // Rows that see something of a block lie side by side: others stay as they are.
  void absorb(const KeyBlock& block, FetchRows fetch) {
    std::int64_t first = 0;
    std::int64_t last = rows_;
    while (first < last && !sees(block, first)) first += group_;
    while (first < last && !sees(block, last - 1)) last -= group_;
    if (first >= last) return;
    math_.pack_keys(block, keys_, fetch);
    math_.pack_values(block, values_, fetch);
    block.load_factors(op_.key, block.rows, op_.scale, key_factors_);
    block.load_factors(op_.value, block.value_rows, 1.0f, value_factors_);
    // Scores of the next rows are taken before this rows' softmax: a processor may do both at once.
    float* scores = scores_;
    float* next = scores_ + kRowsAtOnce * kKeyBlock;
    math_.score(block, query(block.kv_head, first), std::min(kRowsAtOnce, last - first), keys_, scores);
    for (; first < last; first += kRowsAtOnce) {
      const std::int64_t after = first + kRowsAtOnce;
      if (after < last) {
        math_.score(block, query(block.kv_head, after), std::min(kRowsAtOnce, last - after), keys_, next);
      }
      absorb_rows(block, first, std::min(kRowsAtOnce, last - first), scores);
      std::swap(scores, next);
    }
  }

  void absorb_rows(const KeyBlock& block, std::int64_t first, std::int64_t count, const float* scores) {
    const float* value_factors = op_.value.format == KvFormat::kInt8 ? value_factors_ : nullptr;
    for (std::int64_t i = 0; i < count; ++i) {
      absorb_scores(scores + i * kKeyBlock, key_factors_, value_factors, seen_of(block, first + i),
                    state(block.kv_head, first + i), size_, weights_ + i * kKeyBlock);
    }
    math_.add_values(block, weights_, count, values_, {state(block.kv_head, first) + kRowValues, size_});
  }

  void leave(std::int64_t head) {
    for (std::int64_t row = 0; row < rows_; ++row) {
      const float* sums = total(head, row);
      if (item_.partial != nullptr) {
        std::copy(sums, sums + size_, item_.partial + index(head, row) * size_);
      } else {
        write_output(op_, sums, token(row), head * group_ + row % group_);
      }
    }
  }

  const RaggedAttention& op_;
  const RaggedItem& item_;
  Math& math_;
  const SequenceRows& sequence_;
  PageRows key_places_;
  PageRows value_places_;
  std::int64_t group_;
  std::int64_t rows_;  // of one KV head: queries by heads of the group
  std::int64_t left_width_;
  std::int64_t size_;
  float* states_;         // of the range at hand [heads, rows, size]
  float* totals_;         // of the ranges before it
  float* scores_;         // [kRowsAtOnce, kKeyBlock]
  float* key_factors_;    // [kKeyBlock]
  float* value_factors_;  // [kKeyBlock]
  Left* query_;           // [heads, rows, left width]
  Left* weights_;         // [kRowsAtOnce, kKeyBlock]
  char* keys_;            // of the block at hand, packed
  char* values_;
};

// Parts of one softmax, in the order of their keys, become the output of their rows.
inline void join_partials(const RaggedAttention& op, const RaggedItem* items, std::int64_t count) {
  const RaggedItem& item = items[0];
  const SequenceRows& sequence = op.sequences[static_cast<std::size_t>(item.sequence)];
  const std::int64_t group = op.heads / op.kv_heads;
  const std::int64_t size = row_state_size(op);
  const std::int64_t rows = (item.last_query - item.first_query) * group;
  for (std::int64_t n = 0; n < (item.last_head - item.first_head) * rows; ++n) {
    float* total = item.partial + n * size;
    for (std::int64_t part = 1; part < count; ++part) join_state(items[part].partial + n * size, size, total);
    const std::int64_t row = n % rows;
    write_output(op, total, sequence.first_row + item.first_query + row / group,
                 (item.first_head + n / rows) * group + row % group);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#endif
