// Linear layers of inference: the weights of a matrix are packed once, in the order in which the kernels read them, and
// multiplied with 1 to some thousands of rows.
//
// A row of the result is a function of its own input row and of the weights alone: its bits do not depend on how many
// other rows are in the call, on which rows they are, or on how many threads share the work. Serving rests on this: a
// request's tokens do not depend on its neighbours (DESIGN 12). Two machines may round differently.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/dtype.h"

namespace kvloom {

enum class WeightFormat : std::uint8_t {
  kF32,
  kBF16,
  kInt8,  // round(w / s) in -127..127 with s = max |w| / 127 of its output channel, an f32 kept beside it
};
// Of one weight, its scale left aside.
constexpr std::int64_t bytes_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return 4;
    case WeightFormat::kBF16:
      return 2;
    case WeightFormat::kInt8:
      return 1;
  }
  return 0;
}

// A matrix W [outputs, inputs]: y = x W^T.
struct PackedShape {
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
  WeightFormat format = WeightFormat::kF32;

  friend bool operator==(const PackedShape&, const PackedShape&) = default;
};

// What a packed matrix takes: the elements at their format's size, scales, and what fills the last panel. The buffer is
// aligned to 64 bytes and holds the whole state: copies of its bytes are the matrix.
std::size_t packed_bytes(const PackedShape& shape);

// Rows [first_output, first_output + outputs) of the packed matrix = `weights`, f32 or bf16 [outputs, shape.inputs],
// dense, rounded to the format. Every row is packed once, in any order and by any thread; rows that share a panel may
// be packed by different calls, not at the same time.
struct PackRows {
  PackedShape shape;
  void* packed;
  const void* weights;
  DType weights_dtype;
  std::int64_t first_output;
  std::int64_t outputs;
};

// output [rows, shape.inputs] of `dtype` = the packed matrix's rows `indices` i32 [rows]: an embedding's look-up in a
// matrix that is the head too. An index outside of [0, outputs) gives a row of zeros.
struct UnpackRows {
  PackedShape shape;
  const void* packed;
  const std::int32_t* indices;
  std::int64_t rows;
  void* output;
  DType dtype;  // f32 or bf16
};

// One matrix that a PackedLinear multiplies by, and where its result goes:
//   output [rows, outputs] = input W^T (+ bias, to every row) (+ addend)
// in f32, rounded once. The same bits whatever other parts stand beside it.
struct PackedPart {
  PackedShape shape;
  const void* packed;
  void* output;
  DType output_dtype;
  std::int64_t output_stride = 0;  // elements between rows; 0: outputs
  const float* bias = nullptr;     // f32 [outputs]
  // Of the output's dtype and stride, and either apart from it or the output itself; null: nothing is added.
  const void* addend = nullptr;
};

// Parts of one input share a call: their threads are started once.
//   kF32  weights: input f32
//   kBF16 weights: input bf16; products of bf16 values, sums in f32
//   kInt8 weights: input f32 or bf16; the weights are widened, their scale is applied to the sum
struct PackedLinear {
  const void* input;  // [rows, inputs], the same inputs in every part
  DType input_dtype;
  std::int64_t rows;
  std::int64_t input_stride = 0;  // elements between rows; 0: inputs
  std::span<const PackedPart> parts;
};

namespace cpu {
// Safe to call from several threads on different outputs. Throw Error naming the shapes where dtypes do not go
// together.
void run(const PackRows& op);
void run(const UnpackRows& op);
void run(const PackedLinear& op);
// What PackedLinear goes by on this processor: "amx", "avx512-bf16", "avx512", "avx2"; for messages and benchmarks.
const char* packed_linear_kernel(WeightFormat format);
}  // namespace cpu

}  // namespace kvloom
