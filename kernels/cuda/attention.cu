// Which way attention goes.
#include "kernels/attention.h"

#include "kernels/cuda/attention_span.h"
#include "kernels/cuda/attention_ways.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;

// kLanes lanes have the head of a query, N elements at a time. Divides in 32 bits: no GPU has room for 2^32 of them.
template <typename T, int N, int kLanes>
__global__ void __launch_bounds__(kBlock)
    attention_delta(const T* output, const T* grad_output, float* delta, AttentionShape shape) {
  const std::int64_t i = block_index() * (kBlock / kLanes) + thread_index() / kLanes;
  const auto heads = static_cast<std::uint32_t>(shape.heads);
  const auto row = static_cast<std::uint32_t>(i) / heads;
  const std::int64_t head = static_cast<std::uint32_t>(i) % heads;
  const std::int64_t at = row * shape.output_stride + head * shape.head_dim;
  const bool inside = i < shape.batch * shape.queries * shape.heads;
  float sum = 0;
  for (std::int64_t d = thread_index() % kLanes * N; inside && d < shape.head_dim; d += kLanes * N) {
    const Pack<T, N> a = load_pack<N>(output + at + d);
    const Pack<T, N> b = load_pack<N>(grad_output + at + d);
#pragma unroll
    for (int e = 0; e < N; ++e) sum += to_float(a.value[e]) * to_float(b.value[e]);
  }
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (inside && thread_index() % kLanes == 0) delta[i] = sum;
}

template <typename T, int N, int kLanes>
void start_delta(const AttentionBackward& op, float* delta, Queue& queue) {
  const AttentionShape& shape = op.shape;
  launch("attention_delta", attention_delta<T, N, kLanes>,
         {.blocks = ceil_div(shape.batch * shape.queries * shape.heads, kBlock / kLanes), .threads = kBlock}, queue,
         static_cast<const T*>(op.output), static_cast<const T*>(op.grad_output), delta, shape);
}

// By packs of 16 bytes where rows allow it.
template <typename T>
void run_delta(const AttentionBackward& op, float* delta, Queue& queue) {
  constexpr int kPack = kPackOf<T>;
  const bool packed =
      are_multiples({op.shape.head_dim, op.shape.output_stride}, kPack) && are_aligned({op.output, op.grad_output});
  if (packed) return start_delta<T, kPack, 8>(op, delta, queue);
  start_delta<T, 1, kWarp>(op, delta, queue);
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
  with_compute_type(shape.dtype, "attention", [&]<typename T>() { run_delta<T>(op, delta.data(), queue); });
  if (can_use_tensor_cores(op)) return run_tensor_cores(op, delta.data(), queue);
  run_plain(op, delta.data(), queue);
}

}  // namespace kvloom::cuda
