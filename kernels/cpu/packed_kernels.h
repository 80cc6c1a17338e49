// The kernels behind PackedLinear. A processor goes by one family for each type of input, whatever the number of rows,
// so that a row has one order of sums.
#pragma once

#include <cstddef>

#include "kernels/packed_linear.h"

namespace kvloom::cpu {

// Rows [first, last) of the input, put where products read them: a row alone decides what is written for it.
struct ArrangeRows {
  const PackedLinear& op;  // strides filled in
  std::int64_t inputs;
  std::int64_t first;
  std::int64_t last;
  void* arranged;  // of all rows of the call
};

// Rows [first_row, last_row) times panels [first_panel, last_panel) of one part, and what comes after the sum.
struct PanelProduct {
  const void* arranged;
  const PackedPart& part;  // strides filled in
  std::int64_t rows;       // of the call
  std::int64_t first_row;
  std::int64_t last_row;
  std::int64_t first_panel;
  std::int64_t last_panel;
};

struct PackedKernels {
  const char* name;
  DType input_dtype;
  std::int64_t row_multiple;    // ArrangeRows begin and end at multiples of it, or with the last row
  std::int64_t rows_at_once;    // of one PanelProduct, at most: an even multiple of row_multiple
  std::int64_t panels_at_once;  // of one PanelProduct of many rows, at most: a multiple of 8
  std::size_t (*arranged_bytes)(std::int64_t rows, std::int64_t inputs);
  void (*arrange)(const ArrangeRows& rows);
  void (*multiply)(const PanelProduct& product);
};

// By Highway: everything widened to f32.
PackedKernels widening_kernels(DType input_dtype);

// What this processor has of kernels that take bf16 input, best first; the last is widening_kernels.
std::span<const PackedKernels> bf16_kernels();

// cpu::run(op) by the kernels given.
void multiply_packed(const PackedLinear& op, const PackedKernels& kernels);

// `sums` of one row, f32, from the first output of a panel on, times the scale, plus bias and addend, into the output.
struct FinishRow {
  const PackedPart& part;
  const float* sums;
  std::int64_t row;
  std::int64_t first_output;
  std::int64_t outputs;
};

}  // namespace kvloom::cpu
