// Sums, casts, bias and counting over flat buffers.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvloom {

// output[i] (= a[i] + b[i]); all of dtype; output may be a or b.
struct Add {
  const void* a;
  const void* b;
  void* output;
  std::int64_t count;
  DType dtype = DType::kF32;
};

// output[i] = input[i] as another dtype (f32, bf16, f16 and f64 to f32 or bf16; f32 to any of those), rounded to
// nearest even. rows of `columns` elements, `input_stride` and `output_stride` apart (0: dense).
struct Cast {
  const void* input;
  void* output;
  std::int64_t rows;
  std::int64_t columns;
  DType input_dtype;
  DType output_dtype;
  std::int64_t input_stride = 0;
  std::int64_t output_stride = 0;
};

// data[r, c] += bias[c]. data of dtype, rows `stride` apart; bias f32.
struct BiasForward {
  void* data;
  const float* bias;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t stride;
  DType dtype = DType::kF32;
};

// grad_bias[c] += sum_r grad_output[r, c] (f32). grad_output of dtype, rows `stride` apart.
struct BiasBackward {
  const void* grad_output;
  float* grad_bias;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t stride;
  DType dtype = DType::kF32;
};

// values[i] += by.
struct Advance {
  std::int32_t* values;
  std::int64_t count;
  std::int32_t by;
};

namespace cpu {
void run(const Add& op);
void run(const Cast& op);
void run(const BiasForward& op);
void run(const BiasBackward& op);
void run(const Advance& op);
}  // namespace cpu

namespace cuda {
class Queue;
void run(const Add& op, Queue& queue);
void run(const Cast& op, Queue& queue);
void run(const BiasForward& op, Queue& queue);
void run(const BiasBackward& op, Queue& queue);
void run(const Advance& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
