// Products of packed matrices by f32 arithmetic: bf16 and int8 are widened in registers.
#include <hwy/cache_control.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/element.h"
#include "kernels/cpu/packed_kernels.h"
#include "kernels/cpu/packed_layout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/packed_widening.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/packed_finish-inl.h"
#include "kernels/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr bool kWide = HWY_MAX_BYTES >= 64;
constexpr int kPanelVectors = static_cast<int>(kPanel) / (kWide ? 16 : HWY_MAX_BYTES / 4);
// Rows of a block: with as many panels their sums take most registers, and every row count has a kernel.
constexpr int kMostRows = 6;
constexpr int kPanels = kWide ? 4 : 1;
// Of one or few rows: enough sums to keep multipliers busy, enough streams to keep memory busy.
constexpr int kFewRows = kWide ? 2 : 1;
constexpr int kPanelsOfFew = kWide ? 8 : 4;

// How far ahead of their use panels are fetched, in bytes.
constexpr std::int64_t kAhead = 2048;

// How each format's panel gives vectors of f32: kInputs of them from one row of dwords.
struct F32Weights {
  static constexpr int kInputs = 1;
  template <int kInput>
  static HWY_INLINE Vector widen(const char* dwords) {
    return hn::Load(Floats(), reinterpret_cast<const float*>(dwords));
  }
};

template <typename Tag>
HWY_INLINE auto load_dwords(Tag words, const char* dwords) {
  return hn::Load(words, reinterpret_cast<const hn::TFromD<Tag>*>(dwords));
}

struct BF16Weights {
  static constexpr int kInputs = 2;
  template <int kInput>
  static HWY_INLINE Vector widen(const char* dwords) {
    const hn::RebindToUnsigned<Floats> words;
    const auto bits = load_dwords(words, dwords);
    if constexpr (kInput == 0) return hn::BitCast(Floats(), hn::ShiftLeft<16>(bits));
    return hn::BitCast(Floats(), hn::And(bits, hn::Set(words, 0xffff0000u)));
  }
};

struct Int8Weights {
  static constexpr int kInputs = 4;
  template <int kInput>
  static HWY_INLINE Vector widen(const char* dwords) {
    const hn::RebindToSigned<Floats> words;
    const auto bits = load_dwords(words, dwords);
    constexpr int kAbove = 24 - 8 * static_cast<int>(byte_of_input(kInput));
    return hn::ConvertTo(Floats(), hn::ShiftRight<24>(hn::ShiftLeft<kAbove>(bits)));
  }
};

// Operands of a block: rows of f32 and neighbouring panels.
struct Block {
  const float* x;
  std::int64_t x_stride;
  const char* panels;
  std::int64_t panel_bytes;
  std::int64_t inner;
};

template <int kRows, int kCount, typename Weights, int kInput>
HWY_INLINE void multiply_input(const Block& block, const float* x, const char* dwords,
                               Vector (&sums)[kRows][kCount * kPanelVectors]) {
  if constexpr (kInput < Weights::kInputs) {
    Vector weights[kCount * kPanelVectors];
    for (int j = 0; j < kCount * kPanelVectors; ++j) {
      const char* at = dwords + j / kPanelVectors * block.panel_bytes + j % kPanelVectors * lanes() * 4;
      weights[j] = Weights::template widen<kInput>(at);
    }
    for (int i = 0; i < kRows; ++i) {
      const Vector left = fill(x[i * block.x_stride + kInput]);
      for (int j = 0; j < kCount * kPanelVectors; ++j) sums[i][j] = hn::MulAdd(left, weights[j], sums[i][j]);
    }
    multiply_input<kRows, kCount, Weights, kInput + 1>(block, x, dwords, sums);
  }
}

// sums (=) [kRows][kCount * 16].
template <int kRows, int kCount, typename Weights>
HWY_NOINLINE void multiply_block(const Block& block, float* to) {
  Vector sums[kRows][kCount * kPanelVectors];
  for (auto& of_row : sums) {
    for (auto& sum : of_row) sum = hn::Zero(Floats());
  }
  const float* x = block.x;
  const char* dwords = block.panels;
  for (std::int64_t k = 0; k < block.inner; k += Weights::kInputs) {
    for (int j = 0; j < kCount; ++j) hwy::Prefetch(dwords + j * block.panel_bytes + kAhead);
    multiply_input<kRows, kCount, Weights, 0>(block, x, dwords, sums);
    x += Weights::kInputs;
    dwords += kPanel * 4;
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kCount * kPanelVectors; ++j) {
      hn::Store(sums[i][j], Floats(), to + i * kCount * kPanel + j * lanes());
    }
  }
}

template <int kCount, typename Weights>
void multiply_rows(const Block& block, std::int64_t rows, float* to) {
  switch (rows) {
    case 1:
      return multiply_block<1, kCount, Weights>(block, to);
    case 2:
      if constexpr (kCount <= kPanels || kFewRows >= 2) return multiply_block<2, kCount, Weights>(block, to);
      return;
    default:
      break;
  }
  if constexpr (kCount <= kPanels) {
    switch (rows) {
      case 3:
        return multiply_block<3, kCount, Weights>(block, to);
      case 4:
        return multiply_block<4, kCount, Weights>(block, to);
      case 5:
        return multiply_block<5, kCount, Weights>(block, to);
      default:
        return multiply_block<6, kCount, Weights>(block, to);
    }
  }
}

// All rows of the product times kCount panels.
template <int kCount, typename Weights>
void multiply_panels(const PanelProduct& product, std::int64_t panel) {
  const PackedShape& shape = product.part.shape;
  const std::int64_t stride = round_up(shape.inputs, kInputMultiple);
  const std::int64_t rows = product.last_row - product.first_row;
  const std::int64_t blocks = (rows + kMostRows - 1) / kMostRows;
  HWY_ALIGN float sums[kMostRows * kPanelsOfFew * kPanel];
  std::int64_t row = product.first_row;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t count = (rows * (b + 1)) / blocks - rows * b / blocks;
    multiply_rows<kCount, Weights>({static_cast<const float*>(product.arranged) + row * stride, stride,
                                    panel_at(shape, product.part.packed, panel), panel_bytes(shape), inner_of(shape)},
                                   count, sums);
    for (std::int64_t i = 0; i < count; ++i, ++row) {
      finish_row({product.part, sums + i * kCount * kPanel, row, panel * kPanel,
                  std::min(kCount * kPanel, shape.outputs - panel * kPanel)});
    }
  }
}

template <typename Weights>
void multiply_by(const PanelProduct& product) {
  std::int64_t panel = product.first_panel;
  if (product.last_row - product.first_row <= kFewRows) {
    for (; panel + kPanelsOfFew <= product.last_panel; panel += kPanelsOfFew) {
      multiply_panels<kPanelsOfFew, Weights>(product, panel);
    }
  }
  for (; panel + kPanels <= product.last_panel; panel += kPanels) multiply_panels<kPanels, Weights>(product, panel);
  if constexpr (kPanels > 1) {
    for (; panel < product.last_panel; ++panel) multiply_panels<1, Weights>(product, panel);
  }
}

void multiply(const PanelProduct& product) {
  switch (product.part.shape.format) {
    case WeightFormat::kF32:
      return multiply_by<F32Weights>(product);
    case WeightFormat::kBF16:
      return multiply_by<BF16Weights>(product);
    case WeightFormat::kInt8:
      return multiply_by<Int8Weights>(product);
  }
}

template <typename T>
void arrange_rows(const ArrangeRows& rows) {
  const std::int64_t stride = round_up(rows.inputs, kInputMultiple);
  for (std::int64_t row = rows.first; row < rows.last; ++row) {
    const T* from = static_cast<const T*>(rows.op.input) + row * rows.op.input_stride;
    float* to = static_cast<float*>(rows.arranged) + row * stride;
    for_vectors(0, rows.inputs, [&](auto place) HWY_ATTR { place.store(place.load(from), to); });
    std::fill(to + rows.inputs, to + stride, 0.0f);
  }
}

void arrange(const ArrangeRows& rows) {
  if (rows.op.input_dtype == DType::kF32) return arrange_rows<float>(rows);
  arrange_rows<BFloat16>(rows);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(multiply);
HWY_EXPORT(arrange);

std::size_t arranged_bytes(std::int64_t rows, std::int64_t inputs) {
  return static_cast<std::size_t>(rows * round_up(inputs, kInputMultiple) * 4);
}
}  // namespace

PackedKernels widening_kernels(DType input_dtype) {
  const bool wide = (hwy::SupportedTargets() & (HWY_AVX3 | HWY_AVX3_DL)) != 0;
  return {.name = wide ? "avx512" : "avx2",
          .input_dtype = input_dtype,
          .row_multiple = 16,
          .rows_at_once = 1 << 20,
          .panels_at_once = 8,
          .arranged_bytes = arranged_bytes,
          .arrange = HWY_DYNAMIC_DISPATCH(arrange),
          .multiply = HWY_DYNAMIC_DISPATCH(multiply)};
}

}  // namespace kvloom::cpu
#endif
