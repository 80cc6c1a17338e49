// How a ragged attention multiplies: queries with a block of keys, and weights with a block of values.
// Included once for every instruction set.
#if defined(KVLOOM_RAGGED_MATH_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVLOOM_RAGGED_MATH_INL
#undef KVLOOM_RAGGED_MATH_INL
#else
#define KVLOOM_RAGGED_MATH_INL
#endif

#include "kernels/cpu/attention_tiles-inl.h"
#include "kernels/cpu/bf16_products.h"
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
  const std::int64_t* rows;        // of the keys' first heads: counted in heads, from the pool's first
  const std::int64_t* value_rows;  // of the values' likewise
  std::int64_t kv_head;
  std::int64_t first;
  std::int64_t begin;
  std::int64_t end;

  std::int64_t offset(std::int64_t j) const { return (rows[j] + kv_head) * op.head_dim; }
  std::int64_t value_offset(std::int64_t j) const { return (value_rows[j] + kv_head) * op.head_dim; }

  // to (=) [kKeyBlock]: `factor` times the scales of the keys, or with `value_rows` of the values, where the pool has
  // them.
  void load_factors(const KvPool& pool, const std::int64_t* of, float factor, float* to) const {
    std::fill(to, to + kKeyBlock, factor);
    if (pool.format != KvFormat::kInt8) return;
    for (std::int64_t j = begin; j < end; ++j) to[j] = factor * pool.scales[of[j] + kv_head];
  }
};

// Asks for rows that are read soon, a few at a time between the work on a block: memory has only so many requests under
// way, and more of them at once make everything wait.
class FetchRows {
 public:
  static constexpr std::int64_t kSteps = 16;  // of the work on a block, half of them on its keys

  // Of `heads` KV heads each: rows[0, count) and value_rows[0, count), as KeyBlock has them.
  FetchRows(const RaggedAttention& op, const std::int64_t* rows, const std::int64_t* value_rows, std::int64_t count,
            std::int64_t first_head, std::int64_t heads)
      : op_(op), rows_(rows), value_rows_(value_rows), count_(count), first_head_(first_head), heads_(heads) {}

  HWY_INLINE void step() {
    ++step_;
    for (const std::int64_t end = count_ * step_ / kSteps; next_ < end; ++next_) {
      fetch(op_.key, rows_[next_] + first_head_);
      fetch(op_.value, value_rows_[next_] + first_head_);
    }
  }

 private:
  HWY_INLINE void fetch(const KvPool& pool, std::int64_t at) const {
    const std::int64_t bytes = op_.head_dim * element_bytes(pool.format);
    const char* row = static_cast<const char*>(pool.rows) + at * bytes;
    for (std::int64_t line = 0; line < heads_ * bytes; line += 64) __builtin_prefetch(row + line, 0, 2);
  }

  const RaggedAttention& op_;
  const std::int64_t* rows_;
  const std::int64_t* value_rows_;
  std::int64_t count_;
  std::int64_t next_ = 0;
  std::int64_t first_head_;
  std::int64_t heads_;
  std::int64_t step_ = 0;
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

  void load_query(const RaggedAttention& op, std::int64_t offset, Left* to) const {
    widen(op.query, op.dtype, offset, op.head_dim, 1.0f, to);
  }

  // Keys as a right operand [head_dim][kKeyBlock], zeros where nothing is read.
  void pack_keys(const KeyBlock& block, char* packed, FetchRows& fetch) const {
    auto* turned = reinterpret_cast<float*>(packed);
    float* rows = turned + kKeyBlock * width_;
    const std::uint32_t* from[kKeyBlock];
    for (std::int64_t j = 0; j < kKeyBlock; ++j) {
      if (j % (2 * kKeyBlock / FetchRows::kSteps) == 0) fetch.step();
      float* row = rows + j * width_;
      if (j >= block.begin && j < block.end) {
        widen_kv(block.op.key, block.offset(j), block.op.head_dim, row);
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
      if (j % (2 * kKeyBlock / FetchRows::kSteps) == 0) fetch.step();
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

// to (=) [dwords][16] = 16 rows of dwords turned.
HWY_INLINE void turn_sixteen(const std::uint32_t* const* rows, std::int64_t dwords, std::uint32_t* to) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  std::int64_t k = 0;
  // Four rows' dwords as the quarters of a vector, so that turning within quarters is all that is left.
  const auto quarters = [&](int row) HWY_ATTR {
    const auto load = [&](int r) HWY_ATTR { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + k)); };
    __m512i all = _mm512_castsi128_si512(load(row));
    all = _mm512_inserti32x4(all, load(row + 4), 1);
    all = _mm512_inserti32x4(all, load(row + 8), 2);
    return _mm512_inserti32x4(all, load(row + 12), 3);
  };
  for (; k + 4 <= dwords; k += 4) {
    const __m512i a = quarters(0);
    const __m512i b = quarters(1);
    const __m512i c = quarters(2);
    const __m512i d = quarters(3);
    const __m512i ab_low = _mm512_unpacklo_epi32(a, b);
    const __m512i ab_high = _mm512_unpackhi_epi32(a, b);
    const __m512i cd_low = _mm512_unpacklo_epi32(c, d);
    const __m512i cd_high = _mm512_unpackhi_epi32(c, d);
    _mm512_storeu_si512(to + k * 16, _mm512_unpacklo_epi64(ab_low, cd_low));
    _mm512_storeu_si512(to + k * 16 + 16, _mm512_unpackhi_epi64(ab_low, cd_low));
    _mm512_storeu_si512(to + k * 16 + 32, _mm512_unpacklo_epi64(ab_high, cd_high));
    _mm512_storeu_si512(to + k * 16 + 48, _mm512_unpackhi_epi64(ab_high, cd_high));
  }
  for (; k < dwords; ++k) {
    for (std::int64_t row = 0; row < 16; ++row) to[k * 16 + row] = rows[row][k];
  }
#else
  turn_dwords({rows, 16, dwords}, to, 16);
#endif
}

// As many elements as a vector has, as bf16 in the lower halves of dwords.
HWY_INLINE auto load_halves(const BFloat16* from) {
  const hn::Rebind<std::uint16_t, Floats> halves;
  return hn::PromoteTo(hn::RebindToUnsigned<Floats>(), hn::LoadU(halves, reinterpret_cast<const std::uint16_t*>(from)));
}
HWY_INLINE auto load_halves(const std::int8_t* from) {
  const hn::RebindToSigned<Floats> words;
  const hn::Rebind<std::int8_t, Floats> bytes;
  const auto value = hn::ConvertTo(Floats(), hn::PromoteTo(words, hn::LoadU(bytes, from)));
  return hn::ShiftRight<16>(hn::BitCast(hn::RebindToUnsigned<Floats>(), value));
}

// to[0, count) = levels as bf16, exactly.
HWY_INLINE void convert_levels(const std::int8_t* from, std::int64_t count, BFloat16* to) {
  std::int64_t i = 0;
  const hn::Rebind<std::uint16_t, Floats> halves;
  for (; i + lanes() <= count; i += lanes()) {
    hn::StoreU(hn::TruncateTo(halves, load_halves(from + i)), halves, reinterpret_cast<std::uint16_t*>(to + i));
  }
  for (; i < count; ++i) to[i] = BFloat16(static_cast<float>(from[i]));
}

// Queries, keys, values and weights in bf16, sums in f32, by a processor's products of bf16. Keys and values are bf16
// or int8 in their pools.
class Bf16Math {
 public:
  using Left = BFloat16;
  static constexpr std::int64_t kLeftMultiple = 32;

  static std::int64_t packed_bytes(std::int64_t head_dim) { return 2 * kKeyBlock * round_up_to(head_dim, 32) * 2; }

  Bf16Math(const RaggedAttention& op, const Bf16Products& products)
      : products_(products),
        head_dim_(op.head_dim),
        inner_(round_up_to(head_dim_, kLeftMultiple)),
        columns_(padded(head_dim_)),
        state_(products.begin()) {}
  Bf16Math(const Bf16Math&) = delete;
  Bf16Math& operator=(const Bf16Math&) = delete;
  ~Bf16Math() { products_.end(); }

  void load_query(const RaggedAttention& op, std::int64_t offset, Left* to) const {
    std::copy_n(static_cast<const BFloat16*>(op.query) + offset, head_dim_, to);
    std::fill(to + head_dim_, to + inner_, BFloat16());
  }

  // Panels of 16 keys [inner / 2][16][2], zeros where nothing is read.
  void pack_keys(const KeyBlock& block, char* packed, FetchRows& fetch) const {
    auto* rows = reinterpret_cast<BFloat16*>(packed + kKeyBlock * inner_ * 2);
    const bool in_place = block.op.key.format == KvFormat::kBF16 && head_dim_ % 2 == 0;
    const std::uint32_t* from[kKeyBlock];
    for (std::int64_t j = 0; j < kKeyBlock; ++j) {
      BFloat16* row = rows + j * inner_;
      from[j] = reinterpret_cast<const std::uint32_t*>(row);
      if (j < block.begin || j >= block.end) {
        std::fill(row, row + inner_, BFloat16());
      } else if (in_place) {
        from[j] =
            reinterpret_cast<const std::uint32_t*>(static_cast<const BFloat16*>(block.op.key.rows) + block.offset(j));
      } else {
        copy_row(block, j, row);
      }
    }
    const std::int64_t dwords = (head_dim_ + 1) / 2;
    for (std::int64_t panel = 0; panel < kKeyBlock / 16; ++panel) {
      fetch.step();
      fetch.step();
      auto* to = reinterpret_cast<std::uint32_t*>(packed) + panel * inner_ / 2 * 16;
      turn_sixteen(from + panel * 16, dwords, to);
      std::fill(to + dwords * 16, to + inner_ / 2 * 16, 0u);
    }
  }

  void score(const KeyBlock&, const Left* query, std::int64_t rows, const char* packed, float* scores) {
    products_.multiply({query, inner_, rows, packed, kKeyBlock / 16, inner_, scores, kKeyBlock, Output::kOverwrite},
                       state_);
  }

  // Panels of 16 elements [kKeyBlock / 2][16][2], zeros where nothing is read.
  void pack_values(const KeyBlock& block, char* packed, FetchRows& fetch) const {
    if (block.op.value.format == KvFormat::kBF16) {
      pack_values_of<BFloat16>(block, reinterpret_cast<std::uint32_t*>(packed), fetch);
    } else {
      pack_values_of<std::int8_t>(block, reinterpret_cast<std::uint32_t*>(packed), fetch);
    }
  }

  void add_values(const KeyBlock&, const Left* weights, std::int64_t rows, const char* packed, Tile sums) {
    products_.multiply(
        {weights, kKeyBlock, rows, packed, columns_ / 16, kKeyBlock, sums.data, sums.stride, Output::kAccumulate},
        state_);
  }

 private:
  void copy_row(const KeyBlock& block, std::int64_t j, BFloat16* to) const {
    const std::int64_t at = block.offset(j);
    if (block.op.key.format == KvFormat::kBF16) {
      std::copy_n(static_cast<const BFloat16*>(block.op.key.rows) + at, head_dim_, to);
    } else {
      convert_levels(static_cast<const std::int8_t*>(block.op.key.rows) + at, head_dim_, to);
    }
    std::fill(to + head_dim_, to + inner_, BFloat16());
  }

  template <typename T>
  void pack_values_of(const KeyBlock& block, std::uint32_t* to, FetchRows& fetch) const {
    for (std::int64_t j = 0; j < kKeyBlock; j += 2, to += 16) {
      if (j % (2 * kKeyBlock / FetchRows::kSteps) == 0) fetch.step();
      const bool reads_even = j >= block.begin && j < block.end;
      const bool reads_odd = j + 1 >= block.begin && j + 1 < block.end;
      if (!reads_even && !reads_odd) {
        for (std::int64_t i = 0; i < columns_; i += 16) std::fill_n(to + i * (kKeyBlock / 2), 16, 0u);
        continue;
      }
      const T* rows = static_cast<const T*>(block.op.value.rows);
      const T* even = rows + block.value_offset(reads_even ? j : j + 1);
      const T* odd = rows + block.value_offset(reads_odd ? j + 1 : j);
      pair_rows(even, odd, (reads_even ? 0xffffu : 0u) | (reads_odd ? 0xffff0000u : 0u), to);
    }
  }

  // Two keys' values side by side, of those that `mask` leaves.
  template <typename T>
  HWY_INLINE void pair_rows(const T* even, const T* odd, std::uint32_t mask, std::uint32_t* to) const {
    const hn::RebindToUnsigned<Floats> words;
    const auto pair = [&](const T* a, const T* b, std::uint32_t* out) HWY_ATTR {
      for (std::int64_t v = 0; v < 16; v += lanes()) {
        const auto both = hn::Or(load_halves(a + v), hn::ShiftLeft<16>(load_halves(b + v)));
        hn::StoreU(hn::And(both, hn::Set(words, mask)), words, out + v);
      }
    };
    std::int64_t i = 0;
    for (; i + 16 <= head_dim_; i += 16) pair(even + i, odd + i, to + i * (kKeyBlock / 2));
    if (i == head_dim_) return;
    T even_rest[16] = {};
    T odd_rest[16] = {};
    std::copy_n(even + i, head_dim_ - i, even_rest);
    std::copy_n(odd + i, head_dim_ - i, odd_rest);
    pair(even_rest, odd_rest, to + i * (kKeyBlock / 2));
  }

  const Bf16Products& products_;
  std::int64_t head_dim_;
  std::int64_t inner_;    // of scores: head_dim filled up with zeros
  std::int64_t columns_;  // of values
  std::int64_t state_;
};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#endif
