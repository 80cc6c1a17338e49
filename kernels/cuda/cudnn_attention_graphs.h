// Attention forward and backward as graphs of cuDNN operations, of the form that its fused kernels take.
#pragma once

#include "kernels/cuda/cudnn_graph.h"
#include "kernels/cuda/cudnn_plans.h"

namespace kvloom::cuda {

// Tensors are CudnnForwardPlaces' and CudnnBackwardPlaces'.
struct CudnnForward {
  CudnnTensor query, key, value, output, statistics;
  CudnnPlan plan;
};
std::optional<CudnnForward> plan_forward(const CudnnTarget& target, const CudnnAttentionShape& shape);

struct CudnnBackward {
  CudnnTensor query, key, value, output, statistics, grad_output, delta, grad_query, grad_key, grad_value;
  CudnnPlan plan;
};
std::optional<CudnnBackward> plan_backward(const CudnnTarget& target, const CudnnAttentionShape& shape);

}  // namespace kvloom::cuda
