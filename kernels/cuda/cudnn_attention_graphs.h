// Attention forward and backward as graphs of cuDNN operations, of the form that its fused kernels take.
#pragma once

#include <compare>

#include "kernels/attention.h"
#include "kernels/cuda/cudnn_graph.h"

namespace kvloom::cuda {

// Causal attention of `length` queries over as many keys, bf16: query n sees keys j <= n, and with a window j > n -
// window. Strides, in elements: between sequences and between rows; heads are dense.
struct CudnnAttentionShape {
  std::int64_t batch, length, heads, kv_heads, head_dim;
  std::int64_t window;  // 0: none
  float scale;
  std::int64_t query_batch_stride, query_stride;
  std::int64_t output_batch_stride, output_stride;  // also of grad_output
  std::int64_t key_batch_stride, key_stride;        // also of value
  std::int64_t grad_query_batch_stride = 0, grad_query_stride = 0;
  std::int64_t grad_key_batch_stride = 0;  // of dense rows
  auto operator<=>(const CudnnAttentionShape&) const = default;
};

// statistics: f32 [batch, heads, length], natural log of the softmax denominator.
struct CudnnForward {
  CudnnTensor query, key, value, output, statistics;
  CudnnPlan plan;
};
std::optional<CudnnForward> plan_forward(const CudnnTarget& target, const CudnnAttentionShape& shape);

// grad_query, grad_key, grad_value: = bf16. delta: f32 [batch, heads, length], room for what happens in between.
struct CudnnBackward {
  CudnnTensor query, key, value, output, statistics, grad_output, delta, grad_query, grad_key, grad_value;
  CudnnPlan plan;
};
std::optional<CudnnBackward> plan_backward(const CudnnTarget& target, const CudnnAttentionShape& shape);

}  // namespace kvloom::cuda
