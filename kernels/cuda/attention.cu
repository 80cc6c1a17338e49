// Which way attention goes.
#include "kernels/attention.h"

#include "kernels/cuda/attention_span.h"
#include "kernels/cuda/attention_ways.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;

// A warp has the head of a query.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    attention_delta(const T* output, const T* grad_output, float* delta, AttentionShape shape) {
  const std::int64_t i = block_index() * (kBlock / kWarp) + thread_index() / kWarp;
  if (i >= shape.batch * shape.queries * shape.heads) return;
  const std::int64_t at = i / shape.heads * shape.output_stride + i % shape.heads * shape.head_dim;
  float sum = 0;
  for (std::int64_t d = thread_index() % kWarp; d < shape.head_dim; d += kWarp) {
    sum += to_float(output[at + d]) * to_float(grad_output[at + d]);
  }
  sum = combine_of_warp(sum, Plus{});
  if (thread_index() % kWarp == 0) delta[i] = sum;
}

}  // namespace

AttentionShape with_strides(AttentionShape shape) {
  const auto fill = [](std::int64_t& stride, std::int64_t dense) {
    if (stride == 0) stride = dense;
  };
  fill(shape.query_stride, shape.heads * shape.head_dim);
  fill(shape.output_stride, shape.heads * shape.head_dim);
  fill(shape.key_stride, shape.kv_heads * shape.head_dim);
  fill(shape.key_batch_stride, shape.keys * shape.key_stride);
  return shape;
}

void run(const AttentionForward& given, Queue& queue) {
  AttentionForward op = given;
  op.shape = with_strides(given.shape);
  if (op.shape.batch == 0 || op.shape.queries == 0 || op.shape.heads == 0) return;
  if (op.page_table.pages != nullptr) {
    check_pages(op.page_table, op.shape.keys);
    op.shape.key_batch_stride = 0;  // means nothing, and is to choose nothing
  }
  const bool ask_cudnn = queue.cudnn_attention() != nullptr && !can_decode(op);
  if (ask_cudnn && queue.cudnn_attention()->run(op, queue)) return;
  run_own(op, queue);
}

void run_own(const AttentionForward& op, Queue& queue) {
  if (can_decode(op)) return run_decode(op, queue);
  if (can_use_tensor_cores(op)) return run_tensor_cores(op, queue);
  run_plain(op, queue);
}

void run(const AttentionBackward& given, Queue& queue) {
  AttentionBackward op = given;
  op.shape = with_strides(given.shape);
  const AttentionShape& shape = op.shape;
  if (shape.batch == 0 || shape.queries == 0 || shape.heads == 0) return;
  if (op.grad_query_stride == 0) op.grad_query_stride = shape.heads * shape.head_dim;
  if (queue.cudnn_attention() != nullptr && queue.cudnn_attention()->run(op, queue)) return;
  run_own(op, queue);
}

void run_own(const AttentionBackward& op, Queue& queue) {
  const AttentionShape& shape = op.shape;
  const std::int64_t rows = shape.batch * shape.queries * shape.heads;
  const Scratch<float> delta(queue, rows);
  with_compute_type(shape.dtype, "attention", [&]<typename T>() {
    launch("attention_delta", attention_delta<T>, {.blocks = ceil_div(rows, kBlock / kWarp), .threads = kBlock}, queue,
           static_cast<const T*>(op.output), static_cast<const T*>(op.grad_output), delta.data(), shape);
  });
  if (can_use_tensor_cores(op)) return run_tensor_cores(op, delta.data(), queue);
  run_plain(op, delta.data(), queue);
}

}  // namespace kvloom::cuda
