#include "kernels/packed_linear.h"

#include <omp.h>

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

// Items that threads share: blocks of rows by groups of neighbouring panels.
struct Work {
  std::int64_t row_blocks;
  std::int64_t rows_a_block;
  std::int64_t groups;
  std::int64_t panels_a_group;
  bool worth_threads;

  std::int64_t items() const { return row_blocks * groups; }
};

Work with_groups(Work work, const PackedLinear& op, std::int64_t panels_a_group) {
  work.panels_a_group = panels_a_group;
  work.groups = 0;
  for (const PackedPart& part : op.parts) work.groups += groups_of(part.shape, panels_a_group);
  return work;
}

// As large as kernels like them where that leaves threads enough to share.
Work work_of(const PackedLinear& op, const PackedKernels& kernels) {
  constexpr std::int64_t kPanelsOfFewRows = 8;
  constexpr std::int64_t kManyRows = 64;
  const std::int64_t blocks = (op.rows + kernels.rows_at_once - 1) / kernels.rows_at_once;
  Work work{};
  work.rows_a_block = round_up((op.rows + blocks - 1) / blocks, 2 * kernels.row_multiple);
  work.row_blocks = (op.rows + work.rows_a_block - 1) / work.rows_a_block;
  std::int64_t weights = 0;
  for (const PackedPart& part : op.parts) weights += part.shape.outputs * part.shape.inputs;
  work.worth_threads = weights * (1 + op.rows / 8) >= kWorthThreads;
  if (op.rows >= kManyRows) {
    work = with_groups(work, op, kernels.panels_at_once);
    if (work.items() >= 4 * omp_get_max_threads()) return work;
  }
  return with_groups(work, op, kPanelsOfFewRows);
}

void multiply_item(const PackedLinear& op, const PackedKernels& kernels, const void* arranged, const Work& work,
                   std::int64_t item) {
  std::int64_t group = item % work.groups;
  const PackedPart* found = op.parts.data();
  for (std::int64_t groups = 0; group >= (groups = groups_of(found->shape, work.panels_a_group)); ++found) {
    group -= groups;
  }
  PackedPart part = *found;
  if (part.output_stride == 0) part.output_stride = part.shape.outputs;
  const std::int64_t first_row = item / work.groups * work.rows_a_block;
  const std::int64_t first_panel = group * work.panels_a_group;
  kernels.multiply({.arranged = arranged,
                    .part = part,
                    .rows = op.rows,
                    .first_row = first_row,
                    .last_row = std::min(op.rows, first_row + work.rows_a_block),
                    .first_panel = first_panel,
                    .last_panel = std::min(panels_of(part.shape), first_panel + work.panels_a_group)});
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
    for (std::int64_t item = 0; item < work.items(); ++item) {
      multiply_item(op, kernels, arranged, work, item);
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
