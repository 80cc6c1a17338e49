// Products of bf16 in a ragged attention: keys and values as a processor's products of bf16 take them.
// Included once for every instruction set.
#if defined(KVLOOM_RAGGED_BF16_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVLOOM_RAGGED_BF16_INL
#undef KVLOOM_RAGGED_BF16_INL
#else
#define KVLOOM_RAGGED_BF16_INL
#endif

#include "kernels/cpu/bf16_products.h"
#include "kernels/cpu/ragged_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

// to (=) [dwords][16], rows `stride` dwords apart = 16 rows of dwords turned.
HWY_INLINE void turn_sixteen(const std::uint32_t* const* rows, std::int64_t dwords, std::uint32_t* to,
                             std::int64_t stride) {
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
    std::uint32_t* out = to + k * stride;
    _mm512_storeu_si512(out, _mm512_unpacklo_epi64(ab_low, cd_low));
    _mm512_storeu_si512(out + stride, _mm512_unpackhi_epi64(ab_low, cd_low));
    _mm512_storeu_si512(out + 2 * stride, _mm512_unpacklo_epi64(ab_high, cd_high));
    _mm512_storeu_si512(out + 3 * stride, _mm512_unpackhi_epi64(ab_high, cd_high));
  }
#else
  std::int64_t k = 0;
#endif
  for (; k < dwords; ++k) {
    for (std::int64_t row = 0; row < 16; ++row) to[k * stride + row] = rows[row][k];
  }
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
        order_(column_order_of(op)),
        state_(products.begin()) {}
  Bf16Math(const Bf16Math&) = delete;
  Bf16Math& operator=(const Bf16Math&) = delete;
  ~Bf16Math() { products_.end(); }

  void load_query(const RaggedAttention& op, std::int64_t offset, Left* to) const {
    std::copy_n(static_cast<const BFloat16*>(op.query) + offset, head_dim_, to);
    std::fill(to + head_dim_, to + inner_, BFloat16());
  }

  static ColumnOrder column_order_of(const RaggedAttention& op) {
    return op.value.format == KvFormat::kBF16 && op.head_dim % 32 == 0 ? ColumnOrder::kEvenOdd : ColumnOrder::kPlain;
  }
  ColumnOrder column_order() const { return order_; }
  std::int64_t inner() const { return inner_; }
  std::int64_t columns() const { return columns_; }
  const Bf16Products& products() const { return products_; }
  std::int64_t& state() { return state_; }

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
        from[j] = reinterpret_cast<const std::uint32_t*>(static_cast<const BFloat16*>(block.op.key.rows) +
                                                         block.key_offset(j));
      } else {
        copy_key(block, j, row);
      }
    }
    const std::int64_t dwords = (head_dim_ + 1) / 2;
    for (std::int64_t panel = 0; panel < kKeyBlock / 16; ++panel) {
      for (std::int64_t n = 0; n < FetchRows::kStepsOfPacking * 16 / kKeyBlock; ++n) fetch.step();
      auto* to = reinterpret_cast<std::uint32_t*>(packed) + panel * inner_ / 2 * 16;
      turn_sixteen(from + panel * 16, dwords, to, 16);
      std::fill(to + dwords * 16, to + inner_ / 2 * 16, 0u);
    }
  }

  void score(const KeyBlock&, const Left* query, std::int64_t rows, const char* packed, float* scores) {
    products_.multiply({query, inner_, rows, packed, kKeyBlock / 16, inner_, scores, kKeyBlock, Output::kOverwrite},
                       state_);
  }

  // to (=) [inner] = key j of the block, then zeros.
  void copy_key(const KeyBlock& block, std::int64_t j, BFloat16* to) const {
    const std::int64_t at = block.key_offset(j);
    if (block.op.key.format == KvFormat::kBF16) {
      std::copy_n(static_cast<const BFloat16*>(block.op.key.rows) + at, head_dim_, to);
    } else {
      convert_levels(static_cast<const std::int8_t*>(block.op.key.rows) + at, head_dim_, to);
    }
    std::fill(to + head_dim_, to + inner_, BFloat16());
  }

  // Panels of 16 elements in the columns' order [kKeyBlock / 2][16][2], in pairs of keys that are kPairDistance apart,
  // zeros where nothing is read.
  void pack_values(const KeyBlock& block, char* packed, FetchRows& fetch) const {
    if (block.op.value.format == KvFormat::kBF16) {
      pack_values_of<BFloat16>(block, reinterpret_cast<std::uint32_t*>(packed), fetch);
    } else {
      pack_values_of<std::int8_t>(block, reinterpret_cast<std::uint32_t*>(packed), fetch);
    }
  }

  // sums [rows, columns] (+=) weights [rows, kKeyBlock] times the values.
  void add_values(const KeyBlock&, const Left* weights, std::int64_t rows, const char* packed, Tile sums) {
    add_values(weights, rows, packed, sums);
  }
  void add_values(const Left* weights, std::int64_t rows, const char* packed, Tile sums) {
    products_.multiply(
        {weights, kKeyBlock, rows, packed, columns_ / 16, kKeyBlock, sums.data, sums.stride, Output::kAccumulate},
        state_);
  }

 private:
  template <typename T>
  HWY_INLINE void pack_values_of(const KeyBlock& block, std::uint32_t* to, FetchRows& fetch) const {
    static_assert(FetchRows::kStepsOfPacking == kKeyBlock / 2);
    const T* rows = static_cast<const T*>(block.op.value.rows);
    for (std::int64_t pair = 0; pair < kKeyBlock / 2; ++pair, to += 16) {
      fetch.step();
      const std::int64_t j = pair / kPairDistance * 2 * kPairDistance + pair % kPairDistance;
      const std::int64_t other = j + kPairDistance;
      const bool reads_first = j >= block.begin && j < block.end;
      const bool reads_second = other >= block.begin && other < block.end;
      if (!reads_first && !reads_second) {
        for (std::int64_t i = 0; i < columns_; i += 16) std::fill_n(to + i * (kKeyBlock / 2), 16, 0u);
        continue;
      }
      const T* first = rows + block.value_offset(reads_first ? j : other);
      const T* second = rows + block.value_offset(reads_second ? other : j);
      const std::uint32_t mask = (reads_first ? 0xffffu : 0u) | (reads_second ? 0xffff0000u : 0u);
      if (order_ == ColumnOrder::kEvenOdd) {
        pair_dwords(reinterpret_cast<const std::uint32_t*>(first), reinterpret_cast<const std::uint32_t*>(second), mask,
                    to);
      } else {
        pair_rows(first, second, mask, to);
      }
    }
  }

  // As pair_rows, two elements of a key at once.
  HWY_INLINE void pair_dwords(const std::uint32_t* first, const std::uint32_t* second, std::uint32_t mask,
                              std::uint32_t* to) const {
    const hn::RebindToUnsigned<Floats> words;
    const auto low = hn::Set(words, 0xffff);
    const auto read = hn::Set(words, mask);
    const std::int64_t dwords = head_dim_ / 2;
    for (std::int64_t i = 0; i < dwords; i += 16, to += kKeyBlock / 2 * 32) {
      for (std::int64_t v = 0; v < 16; v += lanes()) {
        const auto a = hn::LoadU(words, first + i + v);
        const auto b = hn::LoadU(words, second + i + v);
        const auto even = hn::Or(hn::And(a, low), hn::ShiftLeft<16>(b));
        const auto odd = hn::Or(hn::ShiftRight<16>(a), hn::AndNot(low, b));
        hn::StoreU(hn::And(even, read), words, to + v);
        hn::StoreU(hn::And(odd, read), words, to + kKeyBlock / 2 * 16 + v);
      }
    }
  }

  // Two keys' values side by side, of those that `mask` leaves.
  template <typename T>
  HWY_INLINE void pair_rows(const T* first, const T* second, std::uint32_t mask, std::uint32_t* to) const {
    const hn::RebindToUnsigned<Floats> words;
    const auto pair = [&](const T* a, const T* b, std::uint32_t* out) HWY_ATTR {
      for (std::int64_t v = 0; v < 16; v += lanes()) {
        const auto both = hn::Or(load_halves(a + v), hn::ShiftLeft<16>(load_halves(b + v)));
        hn::StoreU(hn::And(both, hn::Set(words, mask)), words, out + v);
      }
    };
    std::int64_t i = 0;
    for (; i + 16 <= head_dim_; i += 16) pair(first + i, second + i, to + i * (kKeyBlock / 2));
    if (i == head_dim_) return;
    T first_rest[16] = {};
    T second_rest[16] = {};
    std::copy_n(first + i, head_dim_ - i, first_rest);
    std::copy_n(second + i, head_dim_ - i, second_rest);
    pair(first_rest, second_rest, to + i * (kKeyBlock / 2));
  }

  const Bf16Products& products_;
  std::int64_t head_dim_;
  std::int64_t inner_;    // of scores: head_dim filled up with zeros
  std::int64_t columns_;  // of values
  ColumnOrder order_;
  std::int64_t state_;
};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#endif
