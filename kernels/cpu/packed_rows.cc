// Packing, and reading rows back.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/element.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/turn_dwords.h"

namespace kvloom {
namespace {

using cpu::kPanel;

std::string_view name_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return "f32";
    case WeightFormat::kBF16:
      return "bf16";
    case WeightFormat::kInt8:
      return "int8";
  }
  return "?";
}

}  // namespace

std::size_t packed_bytes(const PackedShape& shape) {
  const std::int64_t panels = cpu::panels_of(shape);
  const std::int64_t scales = shape.format == WeightFormat::kInt8 ? panels * kPanel * 4 : 0;
  return static_cast<std::size_t>(panels * cpu::panel_bytes(shape) + scales);
}

namespace cpu {
namespace {

// Levels of one output, [0, 2, 1, 3] in each dword; returns their scale.
template <typename T>
float round_levels(const T* weights, std::int64_t inputs, std::int8_t* to) {
  float most = 0;
  float zeros = 0;
#pragma omp simd reduction(max : most) reduction(+ : zeros)
  for (std::int64_t k = 0; k < inputs; ++k) {
    const float weight = load(weights, k);
    most = std::max(most, std::fabs(weight));
    zeros += weight * 0.0f;
  }
  if (!std::isfinite(zeros)) fail("pack rows: int8 has no place for weights that are not finite");
  const float scale = most / 127.0f;
  const float divisor = scale == 0 ? 1.0f : scale;
  constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
#pragma omp simd
  for (std::int64_t k = 0; k < inputs; ++k) {
    const float level = std::min(127.0f, std::max(-127.0f, load(weights, k) / divisor));
    to[k] = static_cast<std::int8_t>(static_cast<std::int32_t>((level + kToInteger) - kToInteger));
  }
  auto* dwords = reinterpret_cast<std::uint32_t*>(to);
#pragma omp simd
  for (std::int64_t n = 0; n < (inputs + 3) / 4; ++n) {
    const std::uint32_t in_order = dwords[n];
    dwords[n] = (in_order & 0xff0000ffu) | ((in_order & 0x00ff0000u) >> 8) | ((in_order & 0x0000ff00u) << 8);
  }
  return scale;
}

// One output's weights in the format, as dwords; returns its scale. `weights` has `inputs` elements, `to` is zeros
// beyond them.
template <typename T>
float round_row(const T* weights, std::int64_t inputs, WeightFormat format, std::uint32_t* to) {
  if (format == WeightFormat::kF32) {
    auto* out = reinterpret_cast<float*>(to);
    for (std::int64_t k = 0; k < inputs; ++k) out[k] = load(weights, k);
    return 1.0f;
  }
  if (format == WeightFormat::kBF16) {
    auto* out = reinterpret_cast<BFloat16*>(to);
#pragma omp simd
    for (std::int64_t k = 0; k < inputs; ++k) store(out, k, load(weights, k));
    return 1.0f;
  }
  return round_levels(weights, inputs, reinterpret_cast<std::int8_t*>(to));
}

// Whether rows of weights are dwords of the format as they are.
template <typename T>
bool lie_as_packed(const PackedShape& shape, const void* weights) {
  constexpr WeightFormat kSame = sizeof(T) == 4 ? WeightFormat::kF32 : WeightFormat::kBF16;
  return shape.format == kSame && inner_of(shape) == shape.inputs && reinterpret_cast<std::uintptr_t>(weights) % 4 == 0;
}

struct PackPanel {
  const PackRows& op;
  std::int64_t panel;
  std::int64_t begin;  // outputs of the panel, from its first
  std::int64_t end;
};

template <typename T>
void pack_panel(const PackPanel& part, std::uint32_t* rows) {
  const PackRows& op = part.op;
  const std::int64_t inputs = op.shape.inputs;
  const std::int64_t dwords = inner_of(op.shape) * bytes_of(op.shape.format) / 4;
  auto* to = reinterpret_cast<std::uint32_t*>(panel_at(op.shape, op.packed, part.panel));
  const std::uint32_t* from[kPanel];
  // What fills the last panel is written with its last output.
  const std::int64_t last = op.shape.outputs - part.panel * kPanel;
  const std::int64_t end = part.end == last ? kPanel : part.end;
  const bool in_place = lie_as_packed<T>(op.shape, op.weights);
  for (std::int64_t o = part.begin; o < end; ++o) {
    const std::int64_t output = part.panel * kPanel + o;
    std::uint32_t* row = rows + o * dwords;
    from[o] = row;
    float scale = 0;
    if (o >= part.end) {
      std::fill(row, row + dwords, 0u);
    } else {
      const T* weights = static_cast<const T*>(op.weights) + (output - op.first_output) * inputs;
      if (in_place) {
        from[o] = reinterpret_cast<const std::uint32_t*>(weights);
      } else {
        std::fill(row + inputs * bytes_of(op.shape.format) / 4, row + dwords, 0u);
        scale = round_row(weights, inputs, op.shape.format, row);
      }
    }
    if (op.shape.format == WeightFormat::kInt8) scales_of(op.shape, op.packed)[output] = scale;
  }
  if (part.begin == 0 && end == kPanel) return turn_dwords({from, kPanel, dwords}, to, kPanel);
  for (std::int64_t o = part.begin; o < end; ++o) {
    for (std::int64_t k = 0; k < dwords; ++k) to[k * kPanel + o] = from[o][k];
  }
}

// Element k of an output whose panel begins at `panel`, without its scale.
template <WeightFormat kFormat>
float element(const char* panel, std::int64_t output, std::int64_t k) {
  if constexpr (kFormat == WeightFormat::kF32) {
    return reinterpret_cast<const float*>(panel)[k * kPanel + output];
  } else if constexpr (kFormat == WeightFormat::kBF16) {
    return load(reinterpret_cast<const BFloat16*>(panel), (k / 2 * kPanel + output) * 2 + k % 2);
  } else {
    const auto* levels = reinterpret_cast<const std::int8_t*>(panel);
    return static_cast<float>(levels[(k / 4 * kPanel + output) * 4 + byte_of_input(k)]);
  }
}

template <WeightFormat kFormat, typename T>
void unpack_row(const UnpackRows& op, std::int64_t row) {
  const std::int64_t inputs = op.shape.inputs;
  T* to = static_cast<T*>(op.output) + row * inputs;
  const std::int64_t index = op.indices[row];
  if (index < 0 || index >= op.shape.outputs) {
    std::fill(to, to + inputs, T(0.0f));
    return;
  }
  const char* panel = panel_at(op.shape, op.packed, index / kPanel);
  const float scale = kFormat == WeightFormat::kInt8 ? scales_of(op.shape, op.packed)[index] : 1.0f;
  for (std::int64_t k = 0; k < inputs; ++k) store(to, k, element<kFormat>(panel, index % kPanel, k) * scale);
}

template <typename T>
void unpack_row_of(const UnpackRows& op, std::int64_t row) {
  switch (op.shape.format) {
    case WeightFormat::kF32:
      return unpack_row<WeightFormat::kF32, T>(op, row);
    case WeightFormat::kBF16:
      return unpack_row<WeightFormat::kBF16, T>(op, row);
    case WeightFormat::kInt8:
      return unpack_row<WeightFormat::kInt8, T>(op, row);
  }
}

}  // namespace

void run(const PackRows& op) {
  if (op.first_output < 0 || op.outputs < 0 || op.first_output + op.outputs > op.shape.outputs) {
    fail("pack rows: outputs [{}, {}) of a matrix [{}, {}] in {}", op.first_output, op.first_output + op.outputs,
         op.shape.outputs, op.shape.inputs, name_of(op.shape.format));
  }
  if (op.outputs == 0) return;
  static thread_local Scratch scratch;
  const std::int64_t bytes = kPanel * inner_of(op.shape) * bytes_of(op.shape.format);
  auto* rows = scratch.at_least<std::uint32_t>(static_cast<std::size_t>(bytes));
  with_element_type(op.weights_dtype, "pack rows", [&]<typename T>(T*) {
    const std::int64_t last = op.first_output + op.outputs;
    for (std::int64_t panel = op.first_output / kPanel; panel * kPanel < last; ++panel) {
      pack_panel<T>({op, panel, std::max<std::int64_t>(0, op.first_output - panel * kPanel),
                     std::min(kPanel, last - panel * kPanel)},
                    rows);
    }
  });
}

void run(const UnpackRows& op) {
  with_element_type(op.dtype, "unpack rows", [&]<typename T>(T*) {
#pragma omp parallel for schedule(static) if (op.rows * op.shape.inputs >= (1 << 16))
    for (std::int64_t row = 0; row < op.rows; ++row) unpack_row_of<T>(op, row);
  });
}

}  // namespace cpu
}  // namespace kvloom
