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
};

namespace cpu {
// Safe to call from several threads. Throws Error naming the oneDNN call and the sizes.
void run(const Matmul& op);
}  // namespace cpu

namespace cuda {
class Queue;
void run(const Matmul& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
