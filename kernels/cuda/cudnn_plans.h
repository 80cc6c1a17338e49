// Attention as cuDNN computes it: plans by shape, from graphs in the form that its fused kernels take. Nothing here
// names cuDNN's types, so that tests can put other plans in their place (tests/support/simt).
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "kernels/cuda/queue.h"

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

// Device memory. output =; statistics = f32 [batch, heads, length], natural log of the softmax denominator.
struct CudnnForwardPlaces {
  void *query, *key, *value, *output, *statistics;
};
// grad_query, grad_key, grad_value = bf16. delta: f32 [batch, heads, length], room for what happens in between.
struct CudnnBackwardPlaces {
  void *query, *key, *value, *output, *statistics, *grad_output, *delta, *grad_query, *grad_key, *grad_value;
};

template <typename Places>
struct CudnnAttentionPlan {
  std::size_t workspace_bytes;
  std::function<void(const Places& places, void* workspace)> run;  // gives the work to the queue
};

class CudnnPlans {
 public:
  // On the queue's device and stream. Throws Error with the reason when cuDNN cannot be had.
  explicit CudnnPlans(Queue& queue);
  ~CudnnPlans();

  std::size_t version() const;
  // None when cuDNN has no plan that gives equal bits every time. This outlives its plans.
  std::optional<CudnnAttentionPlan<CudnnForwardPlaces>> forward(const CudnnAttentionShape& shape);
  std::optional<CudnnAttentionPlan<CudnnBackwardPlaces>> backward(const CudnnAttentionShape& shape);

 private:
  struct Library;
  std::unique_ptr<Library> library_;
};

}  // namespace kvloom::cuda
