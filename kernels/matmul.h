// Matrix product with plain or transposed operands.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvloom {

enum class Transpose : std::uint8_t { kNo, kYes };
enum class Output : std::uint8_t { kOverwrite, kAccumulate };

// c (= or +=) op(a) op(b), with op(a) [rows, inner], op(b) [inner, columns], c [rows, columns], all row-major.
// A transposed operand is stored with its two sizes swapped: a linear layer `y = x W^T` with W [out, in] is
// {a = x, b = W, transpose_b = kYes}. a and b share one dtype (f32 or bf16); c is f32 or that dtype; sums are f32.
// `*_stride` is the distance in elements between stored rows; 0 means dense.
//
// What belongs to a linear layer beside its product may come with it, so that a backend can do both in one pass:
// - `bias` f32 [columns], with kOverwrite only: c = product, then each row of c += bias as BiasForward does it. In bf16
//   the product may be rounded before, or not.
// - `row_sums` f32 [rows], with a transposed a only: += the sums of op(a)'s rows. Where a is the gradient of a layer's
//   output and c that of its weight, these are the gradient of its bias.
struct Matmul {
  const void* a;
  const void* b;
  void* c;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t inner;
  Transpose transpose_a = Transpose::kNo;
  Transpose transpose_b = Transpose::kNo;
  Output output = Output::kOverwrite;
  // With kAccumulate: what the product is added to, of c's type and layout and apart from it; null: c itself.
  const void* addend = nullptr;
  DType operand_dtype = DType::kF32;
  DType output_dtype = DType::kF32;
  std::int64_t a_stride = 0;
  std::int64_t b_stride = 0;
  std::int64_t c_stride = 0;
  const float* bias = nullptr;
  float* row_sums = nullptr;
};

// How a GPU multiplies f32 operands; those in bf16 are multiplied exactly in either case. A CPU knows kF32 alone.
enum class MatmulPrecision : std::uint8_t {
  kF32,   // as f32
  kTf32,  // on tensor cores, rounded to 10 bits after the point; sums are f32
};

namespace cpu {
// Safe to call from several threads. Throws Error naming the oneDNN call and the sizes.
void run(const Matmul& op);
}  // namespace cpu

namespace cuda {
class Queue;
void run(const Matmul& op, Queue& queue);
// From now on; kF32 before.
void choose_matmul_precision(Queue& queue, MatmulPrecision precision);
}  // namespace cuda

}  // namespace kvloom
