// Operations on tensors: shapes and dtypes are checked here, then the tensor's device does the work. What is written
// over (`=`) and what accumulates (`+=`) is as in kernels/. Every function throws Error naming the operation and the
// shapes.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/sample.h"

namespace kvloom::ops {

// output (= or +=) input weight^T: input [rows, in], weight [out, in], output [rows, out].
void linear(const Tensor& input, const Tensor& weight, Tensor& output, Output mode = Output::kOverwrite);

// output = input weight^T, and bias added to every row: bias f32 [out], undefined where there is none.
void linear_bias(const Tensor& input, const Tensor& weight, const Tensor& bias, Tensor& output);

// output = residual + input weight^T: residual of output's shape and dtype, and not output itself.
void linear_add(const Tensor& input, const Tensor& weight, const Tensor& residual, Tensor& output);

// grad_input (= or +=) grad_output weight: grad_output [rows, out], weight [out, in], grad_input [rows, in].
void linear_grad_input(const Tensor& grad_output, const Tensor& weight, Tensor& grad_input,
                       Output mode = Output::kOverwrite);

// grad_weight += grad_output^T input, f32 [out, in]; grad_bias += the sum of grad_output's rows, f32 [out], undefined
// where there is no bias.
void linear_grad_weight(const Tensor& grad_output, const Tensor& input, Tensor& grad_weight, Tensor& grad_bias);
void linear_grad_weight(const Tensor& grad_output, const Tensor& input, Tensor& grad_weight);

// Over the last axis, whose size is gain's: output =, inverse_rms = (f32, one a row; may be undefined).
void rms_norm(const Tensor& input, const Tensor& gain, float epsilon, Tensor& output, Tensor& inverse_rms);
// sum = a + b, and of it rms_norm; sum may be a or b.
void add_rms_norm(const Tensor& a, const Tensor& b, const Tensor& gain, float epsilon, Tensor& sum, Tensor& output,
                  Tensor& inverse_rms);
// grad_input (= or +=), grad_gain +=.
void rms_norm_grad(const Tensor& input, const Tensor& gain, const Tensor& inverse_rms, const Tensor& grad_output,
                   Tensor& grad_input, Output mode, Tensor& grad_gain);

// Which rows stand where: row r of a [sequences * positions, ...] tensor stands at first_position + r % positions, and
// later by starts[r / positions] where there are starts (i32 [sequences], on the rows' device). Only the device knows
// these: what they reach within tables and caches is the caller's to see to.
struct RowPositions {
  std::int64_t positions;
  std::int64_t first_position = 0;
  const Tensor* starts = nullptr;
};

// data [rows, heads * head_dim], in place; cosine, sine f32 [positions of the table, head_dim / 2].
void rope(Tensor& data, const Tensor& cosine, const Tensor& sine, RowPositions rows, Rotation rotation);

// Heads out of a matrix [rows, ..] for a place of their own. `columns` of the input from `first_column` on; output
// [rows, columns], or with RowPlace::kAtPosition a cache [sequences, capacity, columns], or with RowPlace::kAtPage a
// pool [pages, page_size, columns].
struct HeadsPart {
  const Tensor& input;
  std::int64_t first_column;
  Tensor& output;
  RowPlace place = RowPlace::kDense;
  HeadTurn turn = HeadTurn::kRotated;
};
// What kernels know of a page table, i32 [sequences, pages_per_sequence], over a pool [pages, page_size, columns].
PageTable page_table_of(const Tensor& table, const Tensor& pool);

// output (=) of each part: see RopeSplit. `page_table`: for parts at kAtPage.
void rope_split(std::span<const HeadsPart> parts, const Tensor& cosine, const Tensor& sine, RowPositions rows,
                const Tensor* page_table = nullptr);

// gate_up [rows, 2 * columns], output = [rows, columns]; grad_gate_up =.
void swiglu(const Tensor& gate_up, Tensor& output);
void swiglu_grad(const Tensor& gate_up, const Tensor& grad_output, Tensor& grad_gate_up);

// tokens i32 [rows], table [tokens from first_token on, columns], output = [rows, columns], zero for tokens beyond the
// table; grad_table += (f32).
void embedding(const Tensor& tokens, const Tensor& table, std::int64_t first_token, Tensor& output);
void embedding_grad(const Tensor& tokens, const Tensor& grad_output, std::int64_t first_token, Tensor& grad_table);

// Kernel structs whose callers fill shapes themselves, run where `device` says.
void run(const Device& device, const AttentionForward& op);
void run(const Device& device, const AttentionBackward& op);
void run(const Device& device, const CrossEntropyStatistics& op);
void run(const Device& device, const RescaleTotals& op);
void run(const Device& device, const CrossEntropy& op);
void run(const Device& device, const AdamW& op);
void run(const Device& device, const SumOfSquares& op);
// On a GPU only: where logits are the host's, infer/sampler.h chooses.
void run(const Device& device, const SampleTokens& op);

// output = a + b; output may be either.
void add(const Tensor& a, const Tensor& b, Tensor& output);
// output = input, cast when the dtypes differ (f32, bf16; f16 and f64 as in kernels/elementwise.h). Equal counts. Goes
// from one device to another too, without a cast; the host waits for what it gives or gets.
void copy(const Tensor& input, Tensor& output);

// values[i] += by, i32.
void advance(Tensor& values, std::int32_t by);

// output[i, offset..] = input[i, ..], of one dtype and device: input [blocks, ...], output [blocks, ...] with larger
// blocks, seen as flat; the rest of output stays.
void copy_into_blocks(const Tensor& input, Tensor& output, std::int64_t offset);

struct Change {
  float largest_difference;
  float largest_value;
};
// max |a - b| and max |a|.
Change max_change(const Tensor& a, const Tensor& b);

}  // namespace kvloom::ops
