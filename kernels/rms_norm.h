// Root-mean-square normalisation, Zhang and Sennrich 2019 (arXiv 1910.07467), eq. 4.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvloom {

// output[r, c] = input[r, c] * inverse_rms[r] * gain[c], inverse_rms[r] = 1 / sqrt(mean_c(input[r, c]^2) + epsilon).
// output =, inverse_rms = (f32 [rows], may be null). input and output: dtype, rows `input_stride` and `output_stride`
// elements apart (0: dense); gain f32 [columns]. output may be input.
// With `addend` (dtype, dense) the residual is added on the way: sum (= input + addend, rounded to dtype; dense; may be
// input or addend) is what is normalised and scaled, with the bits of an Add before this.
struct RmsNormForward {
  const void* input;
  const float* gain;
  void* output;
  float* inverse_rms;
  std::int64_t rows;
  std::int64_t columns;
  float epsilon;
  DType dtype = DType::kF32;
  std::int64_t input_stride = 0;
  std::int64_t output_stride = 0;
  const void* addend = nullptr;
  void* sum = nullptr;
};

// grad_input (= or +=, by accumulate_input: += also brings in the residual's gradient), grad_gain += (f32). All rows
// dense but input and grad_input, which are `input_stride` and `grad_input_stride` elements apart (0: dense).
// grad_input may be grad_output when overwritten. Sums over rows run in an order that depends on shapes and thread
// count only.
struct RmsNormBackward {
  const void* input;
  const float* gain;
  const float* inverse_rms;
  const void* grad_output;
  void* grad_input;
  float* grad_gain;
  std::int64_t rows;
  std::int64_t columns;
  bool accumulate_input = false;
  DType dtype = DType::kF32;
  std::int64_t input_stride = 0;
  std::int64_t grad_input_stride = 0;
};

namespace cpu {
void run(const RmsNormForward& op);
void run(const RmsNormBackward& op);
}  // namespace cpu

namespace cuda {
class Queue;
void run(const RmsNormForward& op, Queue& queue);
void run(const RmsNormBackward& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
