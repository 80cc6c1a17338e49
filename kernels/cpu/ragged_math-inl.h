// How a ragged attention multiplies: queries with a block of keys, and weights with a block of values.
// Included once for every instruction set.
#if defined(KVLOOM_RAGGED_MATH_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVLOOM_RAGGED_MATH_INL
#undef KVLOOM_RAGGED_MATH_INL
#else
#define KVLOOM_RAGGED_MATH_INL
#endif

#include "kernels/cpu/attention_tiles-inl.h"
#include "kernels/cpu/ragged_items.h"
#include "kernels/cpu/turn_dwords.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

inline std::int64_t round_up_to(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Keys of one KV head that lie in the block [first, first + kKeyBlock): those at offsets [begin, end) of it are read.
struct KeyBlock {
  const RaggedAttention& op;
  BlockRows rows;
  std::int64_t kv_head;
  std::int64_t first;
  std::int64_t begin;
  std::int64_t end;

  std::int64_t key_offset(std::int64_t j) const { return (rows.keys[j] + kv_head) * op.head_dim; }
  std::int64_t value_offset(std::int64_t j) const { return (rows.values[j] + kv_head) * op.head_dim; }

  // to (=) [kKeyBlock]: `factor` times the scales of the pool's rows `of`, those of `rows`, where the pool has scales.
  void load_factors(const KvPool& pool, const std::int64_t* of, float factor, float* to) const {
    std::fill(to, to + kKeyBlock, factor);
    if (pool.format != KvFormat::kInt8) return;
    for (std::int64_t j = begin; j < end; ++j) to[j] = factor * pool.scales[of[j] + kv_head];
  }
};

// Asks for rows that are read soon, a few lines at a time between the work on a block: a core has only so many requests
// under way, and where fetches take them all, the work itself waits.
class FetchRows {
 public:
  static constexpr std::int64_t kStepsOfPacking = 32;  // of a block's keys, or its values

  // Of `heads` KV heads each: the first `count` rows, in `steps` steps. Keys' and values' by turns.
  FetchRows(const RaggedAttention& op, const BlockRows& rows, std::int64_t count, std::int64_t first_head,
            std::int64_t heads, std::int64_t steps)
      : key_(op, op.key, first_head, heads),
        value_(op, op.value, first_head, heads),
        rows_(rows),
        last_(rows.keys + count) {
    const std::int64_t lines = count * (key_.lines + value_.lines);
    lines_a_step_ = (lines + steps - 1) / steps;
  }

  HWY_INLINE void step() {
    for (std::int64_t n = 0; n < lines_a_step_; ++n, at_ += 64, --left_) {
      if (left_ == 0 && !begin_row()) return;
      __builtin_prefetch(at_, 0, 2);
    }
  }

 private:
  struct Pool {
    Pool(const RaggedAttention& op, const KvPool& pool, std::int64_t first_head, std::int64_t heads)
        : bytes(op.head_dim * element_bytes(pool.format)),
          first(static_cast<const char*>(pool.rows) + first_head * bytes),
          lines((heads * bytes + 63) / 64) {}
    std::int64_t bytes;  // of a head
    const char* first;
    std::int64_t lines;  // of a row
  };

  HWY_INLINE bool begin_row() {
    if (rows_.keys == last_) return false;
    const Pool& pool = is_value_ ? value_ : key_;
    at_ = pool.first + *(is_value_ ? rows_.values : rows_.keys) * pool.bytes;
    left_ = pool.lines;
    if (is_value_) rows_ = rows_.from(1);
    is_value_ = !is_value_;
    return true;
  }

  Pool key_;
  Pool value_;
  BlockRows rows_;
  const std::int64_t* last_;
  std::int64_t lines_a_step_;
  const char* at_ = nullptr;
  std::int64_t left_ = 0;
  bool is_value_ = false;
};

HWY_INLINE void widen_levels(const std::int8_t* from, std::int64_t count, float* to) {
  const hn::RebindToSigned<Floats> words;
  const hn::Rebind<std::int8_t, Floats> bytes;
  std::int64_t i = 0;
  for (; i + lanes() <= count; i += lanes()) {
    hn::StoreU(hn::ConvertTo(Floats(), hn::PromoteTo(words, hn::LoadU(bytes, from + i))), Floats(), to + i);
  }
  for (; i < count; ++i) to[i] = static_cast<float>(from[i]);
  for (; i < padded(count); ++i) to[i] = 0;
}

// to[0, padded(count)) = the row at offset `at` as the pool has it, without its scale.
HWY_INLINE void widen_kv(const KvPool& pool, std::int64_t at, std::int64_t count, float* to) {
  switch (pool.format) {
    case KvFormat::kF32:
      return widen_row(static_cast<const float*>(pool.rows) + at, count, 1.0f, to);
    case KvFormat::kBF16:
      return widen_row(static_cast<const BFloat16*>(pool.rows) + at, count, 1.0f, to);
    case KvFormat::kInt8:
      return widen_levels(static_cast<const std::int8_t*>(pool.rows) + at, count, to);
  }
}

// Everything in f32.
class WideningMath {
 public:
  using Left = float;                                // a query's element, and a weight's
  static constexpr std::int64_t kLeftMultiple = 16;  // of elements of a query

  // Of a block of keys, or of values.
  static std::int64_t packed_bytes(std::int64_t head_dim) { return 2 * kKeyBlock * padded(head_dim) * 4; }

  explicit WideningMath(const RaggedAttention& op) : width_(padded(op.head_dim)) {}

  static ColumnOrder column_order() { return ColumnOrder::kPlain; }

  void load_query(const RaggedAttention& op, std::int64_t offset, Left* to) const {
    widen(op.query, op.dtype, offset, op.head_dim, 1.0f, to);
  }

  // Keys as a right operand [head_dim][kKeyBlock], zeros where nothing is read.
  void pack_keys(const KeyBlock& block, char* packed, FetchRows& fetch) const {
    auto* turned = reinterpret_cast<float*>(packed);
    float* rows = turned + kKeyBlock * width_;
    const std::uint32_t* from[kKeyBlock];
    for (std::int64_t j = 0; j < kKeyBlock; ++j) {
      if (j % (kKeyBlock / FetchRows::kStepsOfPacking) == 0) fetch.step();
      float* row = rows + j * width_;
      if (j >= block.begin && j < block.end) {
        widen_kv(block.op.key, block.key_offset(j), block.op.head_dim, row);
      } else {
        std::fill(row, row + width_, 0.0f);
      }
      from[j] = reinterpret_cast<const std::uint32_t*>(row);
    }
    turn_dwords({from, kKeyBlock, block.op.head_dim}, reinterpret_cast<std::uint32_t*>(turned), kKeyBlock);
  }

  // scores (=) [rows, kKeyBlock].
  void score(const KeyBlock& block, const Left* query, std::int64_t rows, const char* packed, float* scores) {
    multiply_tiles({query, width_, 1}, reinterpret_cast<const float*>(packed), kKeyBlock, {scores, kKeyBlock}, rows,
                   kKeyBlock, block.op.head_dim, Output::kOverwrite);
  }

  void pack_values(const KeyBlock& block, char* packed, FetchRows& fetch) const {
    auto* rows = reinterpret_cast<float*>(packed);
    for (std::int64_t j = 0; j < kKeyBlock; ++j) {
      if (j % (kKeyBlock / FetchRows::kStepsOfPacking) == 0) fetch.step();
      if (j < block.begin || j >= block.end) continue;
      widen_kv(block.op.value, block.value_offset(j), block.op.head_dim, rows + j * width_);
    }
  }

  // sums [rows, width_] (+=) weights [rows, kKeyBlock] times the values.
  void add_values(const KeyBlock& block, const Left* weights, std::int64_t rows, const char* packed, Tile sums) {
    multiply_tiles({weights + block.begin, kKeyBlock, 1}, reinterpret_cast<const float*>(packed) + block.begin * width_,
                   width_, sums, rows, width_, block.end - block.begin, Output::kAccumulate);
  }

 private:
  std::int64_t width_;
};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#endif
