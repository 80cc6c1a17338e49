#include "kernels/cuda/column_sums.h"

#include <algorithm>

#include "kernels/cuda/packs.h"
#include "kernels/elementwise.h"

namespace kvloom::cuda {
namespace {

constexpr int kRowsAtOnce = 32;
constexpr int kBlock = kWarp * kRowsAtOnce;
constexpr std::int64_t kChunkRows = 512;  // of data that is first summed in chunks

// A block has 32 columns; warp w sums rows w, w + 32, ... of [first, end) and warp 0 adds up the warps' sums.
template <typename T>
__device__ float sum_of_column(const T* data, std::int64_t first, std::int64_t end, std::int64_t column,
                               std::int64_t columns, std::int64_t stride) {
  __shared__ float parts[kRowsAtOnce][kWarp];
  const int warp = thread_index() / kWarp;
  const int lane = thread_index() % kWarp;
  float sum = 0;
  if (column < columns) {
    for (std::int64_t row = first + warp; row < end; row += kRowsAtOnce) sum += to_float(data[row * stride + column]);
  }
  parts[warp][lane] = sum;
  block_barrier();
  if (warp != 0) return 0;
  float total = 0;
#pragma unroll
  for (int w = 0; w < kRowsAtOnce; ++w) total += parts[w][lane];
  return total;
}

__global__ void __launch_bounds__(kBlock)
    column_sums(const float* data, float* sums, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  const std::int64_t column = block_index() * kWarp + thread_index() % kWarp;
  const float sum = sum_of_column(data, 0, rows, column, columns, stride);
  if (thread_index() < kWarp && column < columns) sums[column] += sum;
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    column_sums_of_chunks(const T* data, float* partial, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                          std::int64_t column_blocks) {
  const std::int64_t chunk = block_index() / column_blocks;
  const std::int64_t column = block_index() % column_blocks * kWarp + thread_index() % kWarp;
  const std::int64_t first = chunk * kChunkRows;
  const std::int64_t end = first + kChunkRows < rows ? first + kChunkRows : rows;
  const float sum = sum_of_column(data, first, end, column, columns, stride);
  if (thread_index() < kWarp && column < columns) partial[chunk * columns + column] = sum;
}

}  // namespace

void add_column_sums(const AddColumnSums& op, Queue& queue) {
  launch("column_sums", column_sums, {.blocks = ceil_div(op.columns, kWarp), .threads = kBlock}, queue, op.data,
         op.sums, op.rows, op.columns, op.stride);
}

void run(const BiasBackward& op, Queue& queue) {
  if (op.rows == 0 || op.columns == 0) return;
  const std::int64_t chunks = ceil_div(op.rows, kChunkRows);
  const std::int64_t column_blocks = ceil_div(op.columns, kWarp);
  const Scratch<float> partial(queue, chunks * op.columns);
  with_compute_type(op.dtype, "bias_backward", [&]<typename T>() {
    launch("column_sums_of_chunks", column_sums_of_chunks<T>, {.blocks = chunks * column_blocks, .threads = kBlock},
           queue, static_cast<const T*>(op.grad_output), partial.data(), op.rows, op.columns, op.stride, column_blocks);
  });
  add_column_sums({partial.data(), op.grad_bias, chunks, op.columns, op.columns}, queue);
}

}  // namespace kvloom::cuda
