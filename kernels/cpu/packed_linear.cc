#include "kernels/packed_linear.h"

#include <hwy/targets.h>

#include <algorithm>

#include "kernels/cpu/packed_kernels.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/scratch.h"

namespace kvloom::cpu {
namespace {

// Weights that one core reads, or multiplies 8 rows by, in some tens of microseconds: below it a team of threads costs
// more than it saves.
constexpr std::int64_t kWorthThreads = std::int64_t{1} << 18;

bool goes_with(WeightFormat format, DType input) {
  switch (format) {
    case WeightFormat::kF32:
      return input == DType::kF32;
    case WeightFormat::kBF16:
      return input == DType::kBF16;
    case WeightFormat::kInt8:
      return input == DType::kF32 || input == DType::kBF16;
  }
  return false;
}

void check(const PackedLinear& op) {
  constexpr const char* kNames[] = {"f32", "bf16", "int8"};
  for (const PackedPart& part : op.parts) {
    const PackedShape& shape = part.shape;
    if (!goes_with(shape.format, op.input_dtype) || size_of(part.output_dtype) > 4 ||
        (part.output_dtype != DType::kF32 && part.output_dtype != DType::kBF16)) {
      fail(
          "packed linear [{}, {}] x [{}, {}]: weights {} with input {} and output {}; right are f32 with f32, bf16 "
          "with "
          "bf16, int8 with either, and an output of f32 or bf16",
          op.rows, shape.inputs, shape.outputs, shape.inputs, kNames[static_cast<int>(shape.format)],
          name_of(op.input_dtype), name_of(part.output_dtype));
    }
    if (shape.inputs != op.parts[0].shape.inputs) {
      fail("packed linear: parts of {} and of {} inputs share an input", op.parts[0].shape.inputs, shape.inputs);
    }
  }
}

std::int64_t groups_of(const PackedShape& shape, std::int64_t panels_at_once) {
  return (panels_of(shape) + panels_at_once - 1) / panels_at_once;
}

// Group `index` of the panels of all parts.
PanelProduct product_of(const PackedLinear& op, const PackedKernels& kernels, std::int64_t index) {
  for (const PackedPart& part : op.parts) {
    const std::int64_t groups = groups_of(part.shape, kernels.panels_at_once);
    if (index < groups) {
      const std::int64_t first = index * kernels.panels_at_once;
      const std::int64_t last = std::min(panels_of(part.shape), first + kernels.panels_at_once);
      return {.arranged = nullptr, .part = part, .rows = op.rows, .first_panel = first, .last_panel = last};
    }
    index -= groups;
  }
  fail("packed linear: there is no group of panels {}", index);
}

struct Work {
  std::int64_t row_blocks;
  std::int64_t groups;
  bool worth_threads;
};

Work work_of(const PackedLinear& op, const PackedKernels& kernels) {
  Work work{(op.rows + kernels.rows_at_once - 1) / kernels.rows_at_once, 0, false};
  std::int64_t weights = 0;
  for (const PackedPart& part : op.parts) {
    work.groups += groups_of(part.shape, kernels.panels_at_once);
    weights += part.shape.outputs * part.shape.inputs;
  }
  work.worth_threads = weights * (1 + op.rows / 8) >= kWorthThreads;
  return work;
}

void multiply_group(const PackedLinear& op, const PackedKernels& kernels, const void* arranged, std::int64_t block,
                    std::int64_t group) {
  const PanelProduct all = product_of(op, kernels, group);
  const std::int64_t first = block * kernels.rows_at_once;
  PackedPart part = all.part;
  if (part.output_stride == 0) part.output_stride = part.shape.outputs;
  kernels.multiply({.arranged = arranged,
                    .part = part,
                    .rows = op.rows,
                    .first_row = first,
                    .last_row = std::min(op.rows, first + kernels.rows_at_once),
                    .first_panel = all.first_panel,
                    .last_panel = all.last_panel});
}

}  // namespace

void multiply_packed(const PackedLinear& given, const PackedKernels& kernels) {
  check(given);
  if (given.rows == 0 || given.parts.empty()) return;
  PackedLinear op = given;
  const std::int64_t inputs = op.parts[0].shape.inputs;
  if (op.input_stride == 0) op.input_stride = inputs;
  static thread_local Scratch scratch;
  void* arranged = scratch.at_least(kernels.arranged_bytes(op.rows, inputs));
  const Work work = work_of(op, kernels);
  const std::int64_t items = work.row_blocks * work.groups;
  const std::int64_t pieces = (op.rows + kernels.row_multiple - 1) / kernels.row_multiple;
  const auto arrange = [&](std::int64_t piece) {
    const std::int64_t first = piece * kernels.row_multiple;
    kernels.arrange({op, inputs, first, std::min(op.rows, first + kernels.row_multiple), arranged});
  };
  constexpr std::int64_t kFewPieces = 2;
  if (pieces <= kFewPieces || !work.worth_threads) {
    for (std::int64_t piece = 0; piece < pieces; ++piece) arrange(piece);
  }
#pragma omp parallel if (work.worth_threads)
  {
    if (pieces > kFewPieces && work.worth_threads) {
#pragma omp for schedule(static)
      for (std::int64_t piece = 0; piece < pieces; ++piece) arrange(piece);
    }
#pragma omp for schedule(dynamic)
    for (std::int64_t item = 0; item < items; ++item) {
      multiply_group(op, kernels, arranged, item / work.groups, item % work.groups);
    }
  }
}

void run(const PackedLinear& op) {
  if (op.input_dtype == DType::kBF16) return multiply_packed(op, bf16_kernels().front());
  multiply_packed(op, widening_kernels(DType::kF32));
}

const char* packed_linear_kernel(WeightFormat format) {
  return format == WeightFormat::kF32 ? widening_kernels(DType::kF32).name : bf16_kernels().front().name;
}

}  // namespace kvloom::cpu
