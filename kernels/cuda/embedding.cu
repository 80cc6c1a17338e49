#include "kernels/embedding.h"

#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / kWarp;

struct Table {
  std::int64_t packs;  // of a row
  std::int64_t rows;
  std::int64_t first_token;

  __device__ bool holds(std::int64_t token) const { return token >= first_token && token < first_token + rows; }
};

template <typename T, int N>
__global__ void __launch_bounds__(kBlock)
    embedding_forward(const std::int32_t* tokens, const T* table, T* output, Table shape) {
  const std::int64_t row = block_index();
  const std::int64_t token = tokens[row];
  const bool held = shape.holds(token);
  const T* from = table + (held ? token - shape.first_token : 0) * shape.packs * N;
  for (std::int64_t p = thread_index(); p < shape.packs; p += block_size()) {
    Pack<T, N> values;
    if (held) {
      values = load_pack<N>(from + p * N);
    } else {
#pragma unroll
      for (int e = 0; e < N; ++e) values.value[e] = from_float<T>(0.0f);
    }
    store_pack(output + (row * shape.packs + p) * N, values);
  }
}

// The rows of [begin, begin + kBlock) whose token is `token`, in order: their number, and they themselves in `list`.
__device__ int find_rows(const std::int32_t* tokens, std::int64_t begin, std::int64_t rows, std::int32_t token,
                         std::int64_t* list) {
  __shared__ int counts[kWarps];
  const std::int64_t row = begin + thread_index();
  const bool found = row < rows && tokens[row] == token;
  const std::uint32_t votes = ballot(found);
  const int warp = thread_index() / kWarp;
  const int lane = thread_index() % kWarp;
  block_barrier();  // what the last call left has been read
  if (lane == 0) counts[warp] = count_bits(votes);
  block_barrier();
  int before = 0;
  int all = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += counts[w];
    all += counts[w];
  }
  if (found) list[before + count_bits(votes & ((1u << lane) - 1u))] = row;
  block_barrier();
  return all;
}

// Each token's gradient belongs to the block of the first row that has it; that block adds the rows in order, so that
// no two blocks touch the same row of the table and the bits do not depend on timing.
template <typename T, int N>
__global__ void __launch_bounds__(kBlock) embedding_backward(const std::int32_t* tokens, const T* grad_output,
                                                             float* grad_table, std::int64_t rows, Table shape) {
  __shared__ std::int64_t list[kBlock];
  const std::int64_t own = block_index();
  const std::int32_t token = tokens[own];
  if (!shape.holds(token)) return;
  bool earlier = false;
  for (std::int64_t row = thread_index(); row < own && !earlier; row += kBlock) earlier = tokens[row] == token;
  if (any_of_block(earlier)) return;
  const std::int64_t columns = shape.packs * N;
  float* to = grad_table + (token - shape.first_token) * columns;
  for (std::int64_t begin = own; begin < rows; begin += kBlock) {
    const int count = find_rows(tokens, begin, rows, token, list);
    if (count == 0) continue;
    for (std::int64_t p = thread_index(); p < shape.packs; p += kBlock) {
      Floats<N> sum = load_floats<N>(to + p * N);
#pragma unroll 4
      for (int i = 0; i < count; ++i) {
        const Pack<T, N> values = load_pack<N>(grad_output + list[i] * columns + p * N);
#pragma unroll
        for (int e = 0; e < N; ++e) sum.value[e] += to_float(values.value[e]);
      }
      store_floats<N>(to + p * N, sum);
    }
  }
}

int threads_for(std::int64_t packs) {
  return static_cast<int>(std::min<std::int64_t>(kBlock, ceil_div(packs, kWarp) * kWarp));
}

}  // namespace

void run(const EmbeddingForward& op, Queue& queue) {
  if (op.rows == 0 || op.columns == 0) return;
  with_compute_type(op.dtype, "embedding", [&]<typename T>() {
    with_pack<T>(op.columns % kPackOf<T> == 0 && are_aligned({op.table, op.output}), [&]<typename U, int N>() {
      launch("embedding_forward", embedding_forward<U, N>, {.blocks = op.rows, .threads = threads_for(op.columns / N)},
             queue, op.tokens, static_cast<const U*>(op.table), static_cast<U*>(op.output),
             Table{op.columns / N, op.table_rows, op.first_token});
    });
  });
}

void run(const EmbeddingBackward& op, Queue& queue) {
  if (op.rows == 0 || op.columns == 0) return;
  with_compute_type(op.dtype, "embedding", [&]<typename T>() {
    with_pack<T>(op.columns % kPackOf<T> == 0 && are_aligned({op.grad_output, op.grad_table}),
                 [&]<typename U, int N>() {
                   launch("embedding_backward", embedding_backward<U, N>, {.blocks = op.rows, .threads = kBlock}, queue,
                          op.tokens, static_cast<const U*>(op.grad_output), op.grad_table, op.rows,
                          Table{op.columns / N, op.table_rows, op.first_token});
                 });
  });
}

}  // namespace kvloom::cuda
