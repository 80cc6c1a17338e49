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
  const PageRows& rows;
  std::int64_t kv_head;
  std::int64_t first;
  std::int64_t begin;
  std::int64_t end;

  std::int64_t offset(std::int64_t j) const { return (rows.row_of(first + j) * op.kv_heads + kv_head) * op.head_dim; }
  // to (=) [kKeyBlock]: `factor` times the keys' scales, where the pool has them.
  void load_factors(const KvPool& pool, float factor, float* to) const {
    std::fill(to, to + kKeyBlock, factor);
    if (pool.format != KvFormat::kInt8) return;
    for (std::int64_t j = begin; j < end; ++j)
      to[j] = factor * pool.scales[rows.row_of(first + j) * op.kv_heads + kv_head];
  }
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

// to[0, padded(head_dim)) = row j as the pool has it, without its scale.
HWY_INLINE void widen_kv(const KeyBlock& block, const KvPool& pool, std::int64_t j, float* to) {
  const std::int64_t at = block.offset(j);
  const std::int64_t count = block.op.head_dim;
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
  void pack_keys(const KeyBlock& block, char* packed) const {
    auto* turned = reinterpret_cast<float*>(packed);
    float* rows = turned + kKeyBlock * width_;
    const std::uint32_t* from[kKeyBlock];
    for (std::int64_t j = 0; j < kKeyBlock; ++j) {
      float* row = rows + j * width_;
      if (j >= block.begin && j < block.end) {
        widen_kv(block, block.op.key, j, row);
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

  void pack_values(const KeyBlock& block, char* packed) const {
    auto* rows = reinterpret_cast<float*>(packed);
    for (std::int64_t j = block.begin; j < block.end; ++j) widen_kv(block, block.op.value, j, rows + j * width_);
  }

  // sums [rows, width_] (+=) weights [rows, kKeyBlock] times the values.
  void add_values(const KeyBlock& block, const Left* weights, std::int64_t rows, const char* packed, Tile sums) {
    multiply_tiles({weights + block.begin, kKeyBlock, 1}, reinterpret_cast<const float*>(packed) + block.begin * width_,
                   width_, sums, rows, width_, block.end - block.begin, Output::kAccumulate);
  }

 private:
  std::int64_t width_;
};

// 16 elements as bf16, each in the lower half of its dword.
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
  void pack_keys(const KeyBlock& block, char* packed) const {
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
      auto* to = reinterpret_cast<std::uint32_t*>(packed) + panel * inner_ / 2 * 16;
      turn_dwords({from + panel * 16, 16, dwords}, to, 16);
      std::fill(to + dwords * 16, to + inner_ / 2 * 16, 0u);
    }
  }

  void score(const KeyBlock&, const Left* query, std::int64_t rows, const char* packed, float* scores) {
    products_.multiply({query, inner_, rows, packed, kKeyBlock / 16, inner_, scores, kKeyBlock, Output::kOverwrite},
                       state_);
  }

  // Panels of 16 elements [kKeyBlock / 2][16][2], zeros where nothing is read.
  void pack_values(const KeyBlock& block, char* packed) const {
    if (block.op.value.format == KvFormat::kBF16) {
      pack_values_of<BFloat16>(block, reinterpret_cast<std::uint32_t*>(packed));
    } else {
      pack_values_of<std::int8_t>(block, reinterpret_cast<std::uint32_t*>(packed));
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
  void pack_values_of(const KeyBlock& block, std::uint32_t* to) const {
    const T zeros[16] = {};
    const auto row_at = [&](std::int64_t j) {
      return j < block.begin || j >= block.end ? nullptr : static_cast<const T*>(block.op.value.rows) + block.offset(j);
    };
    for (std::int64_t j = 0; j < kKeyBlock; j += 2) {
      const T* even = row_at(j);
      const T* odd = row_at(j + 1);
      for (std::int64_t i = 0; i < columns_; i += 16) {
        std::uint32_t* out = to + i * (kKeyBlock / 2) + j / 2 * 16;
        T even_rest[16] = {};
        T odd_rest[16] = {};
        const T* a = even == nullptr ? zeros : even + i;
        const T* b = odd == nullptr ? zeros : odd + i;
        if (i + 16 > head_dim_) {
          std::copy_n(a, head_dim_ - i, even_rest);
          std::copy_n(b, head_dim_ - i, odd_rest);
          a = even_rest;
          b = odd_rest;
        }
        for (std::int64_t v = 0; v < 16; v += lanes()) {
          const auto pairs = hn::Or(load_halves(a + v), hn::ShiftLeft<16>(load_halves(b + v)));
          hn::StoreU(pairs, hn::RebindToUnsigned<Floats>(), out + v);
        }
      }
    }
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
