// Packing, and reading rows back.
#include <algorithm>
#include <cmath>
#include <cstring>

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
    for (std::int64_t k = 0; k < inputs; ++k) store(out, k, load(weights, k));
    return 1.0f;
  }
  float most = 0;
  float sum_of_zeros = 0;
  for (std::int64_t k = 0; k < inputs; ++k) {
    most = std::max(most, std::fabs(load(weights, k)));
    sum_of_zeros += load(weights, k) * 0.0f;
  }
  const float scale = most / 127.0f;
  if (!std::isfinite(sum_of_zeros)) fail("pack rows: int8 has no place for weights that are not finite");
  auto* out = reinterpret_cast<std::int8_t*>(to);
  if (scale == 0) {
    std::fill(out, out + inputs, std::int8_t{0});
    return 0;
  }
  for (std::int64_t k = 0; k < inputs; ++k) {
    const float level = std::nearbyint(load(weights, k) / scale);
    out[k / 4 * 4 + byte_of_input(k)] = static_cast<std::int8_t>(std::clamp(level, -127.0f, 127.0f));
  }
  return scale;
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
  std::memset(rows, 0, static_cast<std::size_t>(kPanel * dwords * 4));
  const std::uint32_t* from[kPanel];
  for (std::int64_t o = 0; o < kPanel; ++o) from[o] = rows + o * dwords;
  // What fills the last panel is written with its last output.
  const std::int64_t last = op.shape.outputs - part.panel * kPanel;
  const std::int64_t end = part.end == last ? kPanel : part.end;
  for (std::int64_t o = part.begin; o < end; ++o) {
    const std::int64_t output = part.panel * kPanel + o;
    float scale = 0;
    if (o < part.end) {
      const T* weights = static_cast<const T*>(op.weights) + (output - op.first_output) * inputs;
      scale = round_row(weights, inputs, op.shape.format, rows + o * dwords);
    }
    if (op.shape.format == WeightFormat::kInt8) scales_of(op.shape, op.packed)[output] = scale;
  }
  if (part.begin == 0 && end == kPanel) return turn_dwords({from, kPanel, dwords}, to, kPanel);
  for (std::int64_t o = part.begin; o < end; ++o) {
    for (std::int64_t k = 0; k < dwords; ++k) to[k * kPanel + o] = from[o][k];
  }
}

float element(const PackedShape& shape, const char* panel, std::int64_t output, std::int64_t k) {
  switch (shape.format) {
    case WeightFormat::kF32:
      return reinterpret_cast<const float*>(panel)[k * kPanel + output];
    case WeightFormat::kBF16:
      return load(reinterpret_cast<const BFloat16*>(panel), (k / 2 * kPanel + output) * 2 + k % 2);
    case WeightFormat::kInt8:
      return static_cast<float>(
          reinterpret_cast<const std::int8_t*>(panel)[(k / 4 * kPanel + output) * 4 + byte_of_input(k)]);
  }
  return 0;
}

template <typename T>
void unpack_row(const UnpackRows& op, std::int64_t row) {
  const std::int64_t inputs = op.shape.inputs;
  T* to = static_cast<T*>(op.output) + row * inputs;
  const std::int64_t index = op.indices[row];
  if (index < 0 || index >= op.shape.outputs) {
    std::fill(to, to + inputs, T(0.0f));
    return;
  }
  const char* panel = panel_at(op.shape, op.packed, index / kPanel);
  const float scale = op.shape.format == WeightFormat::kInt8 ? scales_of(op.shape, op.packed)[index] : 1.0f;
  for (std::int64_t k = 0; k < inputs; ++k) store(to, k, element(op.shape, panel, index % kPanel, k) * scale);
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
    for (std::int64_t row = 0; row < op.rows; ++row) unpack_row<T>(op, row);
  });
}

}  // namespace cpu
}  // namespace kvloom
