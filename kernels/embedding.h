// Rows of a table by token id.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvloom {

// output[r, :] = table[tokens[r], :]. table [vocab, columns], output [rows, columns], both of dtype.
struct EmbeddingForward {
  const std::int32_t* tokens;
  const void* table;
  void* output;
  std::int64_t rows;
  std::int64_t columns;
  DType dtype = DType::kF32;
};

// grad_table[tokens[r], :] += grad_output[r, :], in the order of r. grad_table f32, grad_output of dtype.
struct EmbeddingBackward {
  const std::int32_t* tokens;
  const void* grad_output;
  float* grad_table;
  std::int64_t rows;
  std::int64_t columns;
  DType dtype = DType::kF32;
};

namespace cpu {
void run(const EmbeddingForward& op);
void run(const EmbeddingBackward& op);
}  // namespace cpu

}  // namespace kvloom
