// Rows of a table by token id. The table holds tokens [first_token, first_token + table_rows): a whole vocabulary, or
// one rank's shard of it.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvloom {

// output[r, :] = table[tokens[r] - first_token, :], zero for tokens that the table does not hold. table
// [table_rows, columns], output [rows, columns], both of dtype.
struct EmbeddingForward {
  const std::int32_t* tokens;
  const void* table;
  void* output;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t table_rows;
  std::int64_t first_token = 0;
  DType dtype = DType::kF32;
};

// grad_table[tokens[r] - first_token, :] += grad_output[r, :], in the order of r, of tokens that the table holds.
// grad_table f32, grad_output of dtype.
struct EmbeddingBackward {
  const std::int32_t* tokens;
  const void* grad_output;
  float* grad_table;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t table_rows;
  std::int64_t first_token = 0;
  DType dtype = DType::kF32;
};

namespace cpu {
void run(const EmbeddingForward& op);
void run(const EmbeddingBackward& op);
}  // namespace cpu

namespace cuda {
class Queue;
void run(const EmbeddingForward& op, Queue& queue);
void run(const EmbeddingBackward& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
