#include "kernels/embedding.h"

#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / kWarp;
constexpr int kRowsEach = 8;  // that a thread looks at, in search of a token
constexpr int kChunk = kBlock * kRowsEach;

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

// The rows of [begin, begin + kChunk) whose token is `token`, in order: their number, and in `list`, which is shared,
// how far from `begin` they lie.
__device__ int find_rows(const std::int32_t* tokens, std::int64_t begin, std::int64_t rows, std::int32_t token,
                         int* list) {
  __shared__ int counts[kWarps];
  const int first = thread_index() * kRowsEach;
  std::uint32_t found = 0;  // bit e: row first + e
#pragma unroll
  for (int e = 0; e < kRowsEach; ++e) {
    const std::int64_t row = begin + first + e;
    if (row < rows && tokens[row] == token) found |= 1u << e;
  }
  if (!any_of_block(found != 0)) return 0;  // else what the last call left has been read
  const int warp = thread_index() / kWarp;
  const int lane = thread_index() % kWarp;
  const int own = count_bits(found);
  int place = 0;
  int of_warp = 0;
#pragma unroll
  for (int bit = 1; bit <= kRowsEach; bit *= 2) {
    const std::uint32_t votes = ballot((own & bit) != 0);
    place += bit * count_bits(votes & ((1u << lane) - 1u));
    of_warp += bit * count_bits(votes);
  }
  if (lane == 0) counts[warp] = of_warp;
  block_barrier();
  int all = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) place += counts[w];
    all += counts[w];
  }
#pragma unroll
  for (int e = 0; e < kRowsEach; ++e) {
    if (found >> e & 1u) list[place++] = first + e;
  }
  block_barrier();
  return all;
}

// Whether a row before `own` has the token.
__device__ bool is_earlier(const std::int32_t* tokens, std::int64_t own, std::int32_t token) {
  bool earlier = false;
  for (std::int64_t first = thread_index(); first < own && !earlier; first += kChunk) {
#pragma unroll
    for (int e = 0; e < kRowsEach; ++e) {
      const std::int64_t row = first + e * kBlock;
      earlier |= row < own && tokens[row] == token;
    }
  }
  return any_of_block(earlier);
}

// Each token's gradient belongs to the block of the first row that has it; that block adds the rows in order, so that
// no two blocks touch the same row of the table and the bits do not depend on timing.
template <typename T, int N>
__global__ void __launch_bounds__(kBlock) embedding_backward(const std::int32_t* tokens, const T* grad_output,
                                                             float* grad_table, std::int64_t rows, Table shape) {
  __shared__ int list[kChunk];
  const std::int64_t own = block_index();
  const std::int32_t token = tokens[own];
  if (!shape.holds(token) || is_earlier(tokens, own, token)) return;
  const std::int64_t columns = shape.packs * N;
  float* to = grad_table + (token - shape.first_token) * columns;
  for (std::int64_t begin = own; begin < rows; begin += kChunk) {
    const int count = find_rows(tokens, begin, rows, token, list);
    if (count == 0) continue;
    for (std::int64_t p = thread_index(); p < shape.packs; p += kBlock) {
      Floats<N> sum = load_floats<N>(to + p * N);
#pragma unroll 8
      for (int i = 0; i < count; ++i) {
        const Pack<T, N> values = load_pack<N>(grad_output + (begin + list[i]) * columns + p * N);
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
