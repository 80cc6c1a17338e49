#include "kernels/reduce.h"

#include <algorithm>

#include "kernels/cuda/packs.h"
#include "kernels/transfer.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;
constexpr std::int64_t kMostBlocks = 1024;        // fixed: the order of sums depends on the count alone
constexpr std::int64_t kBlockElements = 1 << 13;  // fewer are not worth another block

std::int64_t blocks_for(std::int64_t count) {
  return std::clamp(ceil_div(count, kBlockElements), std::int64_t{1}, kMostBlocks);
}

// NaN wins.
struct Larger {
  __device__ float operator()(float a, float b) const { return a > b || a != a ? a : b; }
};

template <int N>
__global__ void __launch_bounds__(kBlock) sum_of_squares(const float* data, std::int64_t count, double* partial) {
  const std::int64_t step = block_count() * kBlock;
  const std::int64_t packs = count / N;
  double sum = 0;
  for (std::int64_t p = block_index() * kBlock + thread_index(); p < packs; p += step) {
    const Pack<float, N> values = load_pack<N>(data + p * N);
#pragma unroll
    for (int e = 0; e < N; ++e) sum += static_cast<double>(values.value[e]) * static_cast<double>(values.value[e]);
  }
  if (block_index() == 0 && packs * N + thread_index() < count) {
    const auto last = static_cast<double>(data[packs * N + thread_index()]);
    sum += last * last;
  }
  sum = combine_of_group<kBlock>(sum, Plus{});
  if (thread_index() == 0) partial[block_index()] = sum;
}

__global__ void __launch_bounds__(kBlock) sum_of_parts(const double* partial, std::int64_t count, double* result) {
  double sum = 0;
  for (std::int64_t i = thread_index(); i < count; i += kBlock) sum += partial[i];
  sum = combine_of_group<kBlock>(sum, Plus{});
  if (thread_index() == 0) *result = sum;
}

// partial [blocks, 2]: the largest |a - b| and the largest |a|.
template <typename T>
__global__ void __launch_bounds__(kBlock) max_change(const T* a, const T* b, std::int64_t count, float* partial) {
  const std::int64_t step = block_count() * kBlock;
  float change = 0;
  float size = 0;
  for (std::int64_t i = block_index() * kBlock + thread_index(); i < count; i += step) {
    const float x = to_float(a[i]);
    change = Larger{}(fabsf(x - to_float(b[i])), change);
    size = Larger{}(fabsf(x), size);
  }
  change = combine_of_group<kBlock>(change, Larger{});
  size = combine_of_group<kBlock>(size, Larger{});
  if (thread_index() == 0) {
    partial[2 * block_index()] = change;
    partial[2 * block_index() + 1] = size;
  }
}

__global__ void __launch_bounds__(kBlock) max_of_parts(const float* partial, std::int64_t count, float* result) {
  float change = 0;
  float size = 0;
  for (std::int64_t i = thread_index(); i < count; i += kBlock) {
    change = Larger{}(partial[2 * i], change);
    size = Larger{}(partial[2 * i + 1], size);
  }
  change = combine_of_group<kBlock>(change, Larger{});
  size = combine_of_group<kBlock>(size, Larger{});
  if (thread_index() == 0) {
    result[0] = change;
    result[1] = size;
  }
}

}  // namespace

void run(const SumOfSquares& op, Queue& queue) {
  const std::int64_t blocks = blocks_for(op.count);
  const Scratch<double> sums(queue, blocks + 1);  // the result behind the parts
  const Grid grid{.blocks = blocks, .threads = kBlock};
  constexpr int kPack = kPackOf<float>;
  if (is_aligned(op.data)) {
    launch("sum_of_squares", sum_of_squares<kPack>, grid, queue, op.data, op.count, sums.data());
  } else {
    launch("sum_of_squares", sum_of_squares<1>, grid, queue, op.data, op.count, sums.data());
  }
  launch("sum_of_parts", sum_of_parts, {.blocks = 1, .threads = kBlock}, queue, sums.data(), blocks,
         sums.data() + blocks);
  run(CopyBytes{op.result, sums.data() + blocks, sizeof(double)}, queue);
}

void run(const MaxChange& op, Queue& queue) {
  const std::int64_t blocks = blocks_for(op.count);
  const Scratch<float> parts(queue, 2 * blocks + 2);
  with_compute_type(op.dtype, "max_change", [&]<typename T>() {
    launch("max_change", max_change<T>, {.blocks = blocks, .threads = kBlock}, queue, static_cast<const T*>(op.a),
           static_cast<const T*>(op.b), op.count, parts.data());
  });
  float* result = parts.data() + 2 * blocks;
  launch("max_of_parts", max_of_parts, {.blocks = 1, .threads = kBlock}, queue, parts.data(), blocks, result);
  float both[2];
  run(CopyBytes{both, result, sizeof(both)}, queue);
  *op.change_result = both[0];
  *op.size_result = both[1];
}

}  // namespace kvloom::cuda
