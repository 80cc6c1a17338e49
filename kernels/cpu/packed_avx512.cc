// Products of packed matrices with bf16 input by AVX-512's pairs of bf16. A sum takes in pairs of inputs in their
// order.
#include "kernels/cpu/packed_avx512.h"

#include <hwy/base.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/packed_kernels.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/scratch.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")
#include "kernels/cpu/bf16_intrinsics.h"

namespace kvloom::cpu {
namespace {

// Rows and panels of a block, whose sums take most registers; and of one or two rows, whose sums keep multipliers busy
// and whose panels keep memory busy.
constexpr int kMostRows = 6;
constexpr int kPanels = 4;
constexpr int kFewRows = 2;
constexpr int kPanelsOfFew = 8;

// Inputs of a part, whose weights stay in a core's cache while all rows pass by; of int8 that few rows pass by, in the
// nearest cache, so that what comes next is fetched meanwhile.
constexpr std::int64_t kInputsAtOnce = 1024;
constexpr std::int64_t kInputsOfFew = 128;
constexpr std::int64_t kRowsOfFew = 24;

// How far ahead of its use a panel that is read once is fetched, in bytes.
constexpr std::int64_t kAhead = 2048;

struct Block {
  const char* x;  // rows of bf16, `x_stride` bytes apart
  std::int64_t x_stride;
  const char* panels[kPanelsOfFew];
  std::int64_t inputs;
  // What to fetch beside the panels, from where, so many bytes for four inputs (0, 64 or 128).
  const char* next[kPanelsOfFew] = {};
  std::int64_t next_bytes = 0;
};

// Where weights come from: StoredPairs and WidenedPairs say how far the next four inputs are and what they are.
struct StoredPairs {
  static constexpr std::int64_t kBytes = 128;  // of four inputs
  __attribute__((always_inline)) inline Levels::Pairs load(const char* at) const {
    _mm_prefetch(at + kAhead, _MM_HINT_T0);
    _mm_prefetch(at + kAhead + 64, _MM_HINT_T0);
    return {_mm512_load_si512(at), _mm512_load_si512(at + 64)};
  }
};

struct WidenedPairs {
  static constexpr std::int64_t kBytes = 64;
  __attribute__((always_inline)) inline Levels::Pairs load(const char* at) const {
    _mm_prefetch(at + kAhead, _MM_HINT_T0);
    return levels.widen(_mm512_load_si512(at));
  }
  Levels levels;
};

__attribute__((always_inline)) inline __m512 add_pairs(__m512 sum, const char* x, __m512i weights) {
  int pair;
  std::memcpy(&pair, x, sizeof pair);
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)weights);
}

// sums [kRows][kCount] of panels, += or =.
template <int kRows, int kCount, typename Pairs>
HWY_NOINLINE void multiply_block(const Block& block, const Pairs& given, bool first, float* sums) {
  const Pairs pairs = given;
  __m512 s[kRows][kCount];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kCount; ++j) {
      s[i][j] = first ? _mm512_setzero_ps() : _mm512_load_ps(sums + (i * kCount + j) * kPanel);
    }
  }
  const char* x = block.x;
  std::int64_t at = 0;
  for (std::int64_t k = 0; k < block.inputs; k += 4, x += 8, at += Pairs::kBytes) {
    if constexpr (kRows <= kFewRows) {
      for (int j = 0; j < kCount; ++j) {
        const Levels::Pairs weights = pairs.load(block.panels[j] + at);
        for (int i = 0; i < kRows; ++i) s[i][j] = add_pairs(s[i][j], x + i * block.x_stride, weights.first);
        for (int i = 0; i < kRows; ++i) s[i][j] = add_pairs(s[i][j], x + i * block.x_stride + 4, weights.second);
      }
    } else {
      const std::int64_t next = k / 4 * block.next_bytes;
      // Pair by pair: more weights than these find no register.
      for (std::int64_t pair = 0; pair < 2; ++pair) {
        __m512i weights[kCount];
        for (int j = 0; j < kCount; ++j) weights[j] = _mm512_load_si512(block.panels[j] + at + pair * 64);
        for (int j = 0; j < kCount; ++j) _mm_prefetch(block.next[j] + next + pair * block.next_bytes / 2, _MM_HINT_T0);
        for (int i = 0; i < kRows; ++i) {
          for (int j = 0; j < kCount; ++j) {
            s[i][j] = add_pairs(s[i][j], x + i * block.x_stride + 4 * pair, weights[j]);
          }
        }
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kCount; ++j) _mm512_store_ps(sums + (i * kCount + j) * kPanel, s[i][j]);
  }
}

// int8 is widened in registers for few rows, before for others.
template <int kCount, typename Pairs>
void multiply_rows(const Block& block, const Pairs& pairs, std::int64_t rows, bool first, float* sums) {
  switch (rows) {
    case 1:
      return multiply_block<1, kCount>(block, pairs, first, sums);
    case 2:
      return multiply_block<2, kCount>(block, pairs, first, sums);
    default:
      break;
  }
  if constexpr (kCount <= kPanels && std::is_same_v<Pairs, StoredPairs>) {
    switch (rows) {
      case 3:
        return multiply_block<3, kCount>(block, pairs, first, sums);
      case 4:
        return multiply_block<4, kCount>(block, pairs, first, sums);
      case 5:
        return multiply_block<5, kCount>(block, pairs, first, sums);
      default:
        return multiply_block<6, kCount>(block, pairs, first, sums);
    }
  }
}

class Avx512Product {
 public:
  explicit Avx512Product(const PanelProduct& product)
      : product_(product),
        shape_(product.part.shape),
        inner_(inner_of(shape_)),
        rows_(product.last_row - product.first_row),
        row_blocks_((rows_ + kMostRows - 1) / kMostRows) {}

  void run() {
    std::int64_t panel = product_.first_panel;
    if (rows_ <= kFewRows) {
      for (; panel + kPanels < product_.last_panel; panel += kPanelsOfFew) multiply_few<kPanelsOfFew>(panel);
    }
    for (; panel < product_.last_panel; panel += kPanels) {
      if (rows_ <= (shape_.format == WeightFormat::kInt8 ? kFewRows : kMostRows)) {
        multiply_few<kPanels>(panel);
      } else {
        multiply_many(panel);
      }
    }
  }

 private:
  // Panels from `panel` on; where there are fewer, the last one stands in and its sums are not looked at.
  Block block_of(std::int64_t row, std::int64_t panel, int count) const {
    Block block{static_cast<const char*>(product_.arranged) + row * inner_ * 2, inner_ * 2, {}, inner_};
    for (int j = 0; j < count; ++j) {
      block.panels[j] = panel_at(shape_, product_.part.packed, std::min(panel + j, product_.last_panel - 1));
    }
    return block;
  }

  template <int kCount>
  void finish(std::int64_t row, std::int64_t rows, std::int64_t panel, const float* sums) const {
    for (std::int64_t j = 0; j < kCount && panel + j < product_.last_panel; ++j) {
      const FinishPanel finish(product_.part, panel + j);
      for (std::int64_t i = 0; i < rows; ++i) {
        finish.write(row + i, _mm512_load_ps(sums + (i * kCount + j) * kPanel));
      }
    }
  }

  // Panels that are read once.
  template <int kCount>
  void multiply_few(std::int64_t panel) const {
    alignas(64) float sums[kMostRows * kPanels * kPanel];
    Block block = block_of(product_.first_row, panel, kCount);
    for (int j = 0; j < kCount; ++j) block.next[j] = block.panels[j] + kAhead;
    block.next_bytes = 128;
    if (shape_.format == WeightFormat::kInt8) {
      multiply_rows<kCount>(block, WidenedPairs(), rows_, true, sums);
    } else {
      multiply_rows<kCount>(block, StoredPairs(), rows_, true, sums);
    }
    finish<kCount>(product_.first_row, rows_, panel, sums);
  }

  // Some inputs of four panels after the other, all rows each time.
  void multiply_many(std::int64_t panel) const {
    static thread_local Scratch scratch;
    const std::int64_t sums_bytes = row_blocks_ * kMostRows * kPanels * kPanel * 4;
    auto* memory = scratch.at_least(static_cast<std::size_t>(sums_bytes + kPanels * kInputsAtOnce * kPanel * 2));
    const bool few = shape_.format == WeightFormat::kInt8 && rows_ <= kRowsOfFew;
    const std::int64_t at_once = few ? kInputsOfFew : kInputsAtOnce;
    for (std::int64_t k = 0; k < inner_; k += at_once) {
      multiply_part(panel, k, std::min(at_once, inner_ - k), memory);
    }
  }

  // `memory`: sums, then room for what is widened.
  void multiply_part(std::int64_t panel, std::int64_t k, std::int64_t inputs, char* memory) const {
    auto* sums = reinterpret_cast<float*>(memory);
    Block block = block_of(product_.first_row, panel, kPanels);
    block.inputs = inputs;
    for (int j = 0; j < kPanels; ++j) {
      block.panels[j] += k * kPanel * bytes_of(shape_.format);
      block.next[j] = block.panels[j] + inputs * kPanel * bytes_of(shape_.format);
    }
    if (shape_.format == WeightFormat::kInt8) {
      widen(block, memory + row_blocks_ * kMostRows * kPanels * kPanel * 4);
    }
    for (std::int64_t b = 0; b < row_blocks_; ++b, sums += kMostRows * kPanels * kPanel) {
      const std::int64_t first = rows_ * b / row_blocks_;
      const std::int64_t rows = rows_ * (b + 1) / row_blocks_ - first;
      const std::int64_t row = product_.first_row + first;
      block.x = static_cast<const char*>(product_.arranged) + (row * inner_ + k) * 2;
      block.next_bytes = b == row_blocks_ - 1 ? 64 * bytes_of(shape_.format) : 0;
      multiply_rows<kPanels>(block, StoredPairs(), rows, k == 0, sums);
      if (k + inputs == inner_) finish<kPanels>(row, rows, panel, sums);
    }
  }

  static void widen(Block& block, char* to) {
    const Levels levels;
    for (int j = 0; j < kPanels; ++j, to += block.inputs * kPanel * 2) {
      widen_panel(levels, block.panels[j], block.inputs, to);
      block.panels[j] = to;
    }
  }

  const PanelProduct& product_;
  const PackedShape& shape_;
  std::int64_t inner_;
  std::int64_t rows_;
  std::int64_t row_blocks_;
};

void multiply(const PanelProduct& product) { Avx512Product(product).run(); }

#pragma GCC pop_options

void arrange(const ArrangeRows& rows) {
  const std::int64_t inner = round_up(rows.inputs, kInputMultiple);
  for (std::int64_t row = rows.first; row < rows.last; ++row) {
    const auto* from = static_cast<const BFloat16*>(rows.op.input) + row * rows.op.input_stride;
    auto* to = static_cast<BFloat16*>(rows.arranged) + row * inner;
    std::copy(from, from + rows.inputs, to);
    std::fill(to + rows.inputs, to + inner, BFloat16());
  }
}

std::size_t arranged_bytes(std::int64_t rows, std::int64_t inputs) {
  return static_cast<std::size_t>(rows * round_up(inputs, kInputMultiple) * 2);
}

}  // namespace

bool processor_has_avx512_bf16() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
}

PackedKernels avx512_bf16_kernels() {
  return {.name = "avx512-bf16",
          .input_dtype = DType::kBF16,
          .row_multiple = 16,
          .rows_at_once = 1024,
          .panels_at_once = 16,
          .arranged_bytes = arranged_bytes,
          .arrange = arrange,
          .multiply = multiply};
}

}  // namespace kvloom::cpu
