// Rows of a ragged attention over a block of keys, one KV head after another, by the products that `Math` has.
// Included once for every instruction set.
#if defined(KVLOOM_RAGGED_HEADS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVLOOM_RAGGED_HEADS_INL
#undef KVLOOM_RAGGED_HEADS_INL
#else
#define KVLOOM_RAGGED_HEADS_INL
#endif

#include <utility>

#include "kernels/cpu/ragged_items.h"
#include "kernels/cpu/ragged_math-inl.h"
#include "kernels/cpu/ragged_softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

// Rows that meet a block of keys at once, so that their scores stay close.
constexpr std::int64_t kRowsAtOnce = 32;

template <typename GivenMath>
class RowsByHead {
 public:
  using Math = GivenMath;
  using Left = typename Math::Left;

  RowsByHead(const ItemRows& rows, Math& math, char* scratch)
      : rows_(rows),
        math_(math),
        left_width_(round_up_to(rows.op.head_dim, Math::kLeftMultiple)),
        size_(row_state_size(rows.op)),
        scores_(reinterpret_cast<float*>(scratch)),
        key_factors_(scores_ + 2 * kRowsAtOnce * kKeyBlock),
        value_factors_(key_factors_ + kKeyBlock),
        query_(reinterpret_cast<Left*>(value_factors_ + kKeyBlock)),
        weights_(query_ + round_up_to(rows.count * rows.heads() * left_width_, 64)),
        keys_(reinterpret_cast<char*>(weights_ + kRowsAtOnce * kKeyBlock)),
        values_(keys_ + Math::packed_bytes(rows.op.head_dim)) {
    for_all_rows([&](std::int64_t head, std::int64_t row) {
      math_.load_query(rows_.op, rows_.query_at(head, row), query(head, row));
    });
  }

  static std::int64_t scratch_bytes(const RaggedAttention& op, std::int64_t heads, std::int64_t rows) {
    const std::int64_t floats = 2 * kRowsAtOnce * kKeyBlock + 2 * kKeyBlock;
    const std::int64_t lefts =
        round_up_to(heads * rows * round_up_to(op.head_dim, Math::kLeftMultiple), 64) + kRowsAtOnce * kKeyBlock;
    return floats * 4 + lefts * static_cast<std::int64_t>(sizeof(Left)) + 2 * Math::packed_bytes(op.head_dim);
  }

  void begin_range(float* states) {
    states_ = states;
    for_all_rows([&](std::int64_t head, std::int64_t row) { clear_state(state(head, row), size_); });
  }

  void absorb(const BlockKeys& keys) {
    const RaggedItem& item = rows_.item;
    for (std::int64_t head = item.first_head; head < item.last_head; ++head) {
      absorb({rows_.op, keys.rows, head, keys.first, keys.begin, keys.end}, fetch_share(keys, head));
    }
  }

  void end_range() {}

 private:
  template <typename Visit>
  HWY_INLINE void for_all_rows(const Visit& visit) const {
    for (std::int64_t head = rows_.item.first_head; head < rows_.item.last_head; ++head) {
      for (std::int64_t row = 0; row < rows_.count; ++row) visit(head, row);
    }
  }

  float* state(std::int64_t head, std::int64_t row) const { return states_ + rows_.index(head, row) * size_; }
  Left* query(std::int64_t head, std::int64_t row) const { return query_ + rows_.index(head, row) * left_width_; }

  // The block after, whole rows in their order: each head fetches its share of them.
  FetchRows fetch_share(const BlockKeys& keys, std::int64_t head) const {
    const std::int64_t heads = rows_.heads();
    const std::int64_t n = head - rows_.item.first_head;
    const std::int64_t begin = keys.next_count * n / heads;
    const std::int64_t count = keys.next_count * (n + 1) / heads - begin;
    return {rows_.op, keys.next.from(begin), count, rows_.item.first_head, heads, 2 * FetchRows::kStepsOfPacking};
  }

  Span seen_of(const KeyBlock& block, std::int64_t row) const {
    return within_block(rows_.seen(row), block.first, kKeyBlock);
  }
  bool sees(const KeyBlock& block, std::int64_t row) const {
    const Span span = seen_of(block, row);
    return span.begin < span.end;
  }

  // Rows that see something of a block lie side by side: others stay as they are.
  void absorb(const KeyBlock& block, FetchRows fetch) {
    std::int64_t first = 0;
    std::int64_t last = rows_.count;
    while (first < last && !sees(block, first)) first += rows_.group;
    while (first < last && !sees(block, last - 1)) last -= rows_.group;
    if (first >= last) return;
    math_.pack_keys(block, keys_, fetch);
    math_.pack_values(block, values_, fetch);
    block.load_factors(rows_.op.key, block.rows.keys, rows_.op.scale * kLog2E, key_factors_);
    block.load_factors(rows_.op.value, block.rows.values, 1.0f, value_factors_);
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
    const float* value_factors = rows_.op.value.format == KvFormat::kInt8 ? value_factors_ : nullptr;
    for (std::int64_t i = 0; i < count; ++i) {
      absorb_scores(scores + i * kKeyBlock, key_factors_, value_factors, seen_of(block, first + i),
                    state(block.kv_head, first + i), size_, weights_ + i * kKeyBlock);
    }
    math_.add_values(block, weights_, count, values_, {state(block.kv_head, first) + kRowValues, size_});
  }

  const ItemRows& rows_;
  Math& math_;
  std::int64_t left_width_;
  std::int64_t size_;
  float* states_ = nullptr;
  float* scores_;         // [2][kRowsAtOnce, kKeyBlock]
  float* key_factors_;    // [kKeyBlock]
  float* value_factors_;  // [kKeyBlock]
  Left* query_;           // [heads, rows, left width]
  Left* weights_;         // [kRowsAtOnce, kKeyBlock]
  char* keys_;            // of the block at hand, packed
  char* values_;
};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#endif
