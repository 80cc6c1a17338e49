// The ways in which attention is computed on a GPU, of which `run` takes the first that can.
#pragma once

#include "kernels/attention.h"
#include "kernels/cuda/queue.h"

namespace kvloom::cuda {

// In these, strides are written out: 0 stands for nothing.
AttentionShape with_strides(AttentionShape shape);

// kvloom's own kernels, whatever was chosen. `run` asks cuDNN before them where the queue says so.
void run_own(const AttentionForward& op, Queue& queue);
void run_own(const AttentionBackward& op, Queue& queue);

// One query a sequence: keys split over blocks, the heads that share a KV head read it together.
bool can_decode(const AttentionForward& op);
void run_decode(const AttentionForward& op, Queue& queue);

// Of those, bf16 with head_dim 64 or 128: `run_decode` goes this way by itself.
bool can_decode_by_tensor_cores(const AttentionForward& op);
void run_decode_by_tensor_cores(const AttentionForward& op, Queue& queue);

// bf16 on tensor cores, head_dim 64 or 128, rows at multiples of 16 bytes.
bool can_use_tensor_cores(const AttentionForward& op);
bool can_use_tensor_cores(const AttentionBackward& op);
void run_tensor_cores(const AttentionForward& op, Queue& queue);

// `delta` f32 [batch, queries, heads]: the sum over head_dim of output * grad_output.
void run_tensor_cores(const AttentionBackward& op, const float* delta, Queue& queue);

// Anything with head_dim of up to 256, in f32 arithmetic.
void run_plain(const AttentionForward& op, Queue& queue);
void run_plain(const AttentionBackward& op, const float* delta, Queue& queue);

}  // namespace kvloom::cuda
