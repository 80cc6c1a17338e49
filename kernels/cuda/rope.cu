#include "kernels/rope.h"

#include <algorithm>
#include <iterator>

#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kLargestBlock = 256;

struct Shape {
  std::int64_t packs;       // of half a head
  std::int64_t head_packs;  // heads * packs: pairs of packs in a row
  std::int64_t head_dim;
  std::int64_t stride;
  std::int64_t first_position;
  std::int64_t row_period;
  const std::int32_t* starts;
};

// Of Rope's shape and RopeSplit; negative: the row is left out.
template <typename Op>
__device__ __forceinline__ std::int64_t position_of(const Op& op, std::int64_t row) {
  const std::int64_t start = op.starts == nullptr ? 0 : op.starts[row / op.row_period];
  return op.first_position + start + row % op.row_period;
}

// Packs of both halves of a head, turned.
template <typename T, int N>
__device__ __forceinline__ void turn(Pack<T, N>& a, Pack<T, N>& b, const Floats<N>& cosine, const Floats<N>& sine,
                                     float direction) {
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const float x = to_float(a.value[e]);
    const float y = to_float(b.value[e]);
    const float s = direction * sine.value[e];
    a.value[e] = from_float<T>(x * cosine.value[e] - y * s);
    b.value[e] = from_float<T>(y * cosine.value[e] + x * s);
  }
}

// A block has a row; a thread turns packs p of both halves of a head.
template <typename T, int N, Rotation kRotation>
__global__ void __launch_bounds__(kLargestBlock) rope(T* data, const float* cosine, const float* sine, Shape shape) {
  const std::int64_t row = block_index();
  const std::int64_t half = shape.packs * N;
  const std::int64_t position = position_of(shape, row);
  if (position < 0) return;
  for (std::int64_t i = thread_index(); i < shape.head_packs; i += block_size()) {
    const std::int64_t d = i % shape.packs * N;
    T* low = data + row * shape.stride + i / shape.packs * shape.head_dim + d;
    T* high = low + half;
    Pack<T, N> a = load_pack<N>(low);
    Pack<T, N> b = load_pack<N>(high);
    const Floats<N> c = load_floats<N>(cosine + position * half + d);
    const Floats<N> s = load_floats<N>(sine + position * half + d);
    turn(a, b, c, s, kRotation == Rotation::kForward ? 1.0f : -1.0f);
    store_pack(low, a);
    store_pack(high, b);
  }
}

template <typename T, int N, Rotation kRotation>
void start(const Rope& op, Queue& queue) {
  const std::int64_t packs = op.head_dim / 2 / N;
  const Shape shape{packs, op.heads * packs, op.head_dim, op.stride, op.first_position, op.row_period, op.starts};
  const std::int64_t threads = std::min<std::int64_t>(kLargestBlock, ceil_div(shape.head_packs, kWarp) * kWarp);
  launch("rope", rope<T, N, kRotation>, {.blocks = op.rows, .threads = static_cast<int>(threads)}, queue,
         static_cast<T*>(op.data), op.cosine, op.sine, shape);
}

template <typename T>
__device__ T* output_row(const RopeSplit& op, const RopePart& part, std::int64_t row, std::int64_t position) {
  T* output = static_cast<T*>(part.output);
  if (part.place == RowPlace::kDense) return output + row * part.output_stride;
  const std::int64_t sequence = row / op.row_period;
  if (part.place == RowPlace::kAtPosition) {
    return output + sequence * part.sequence_stride + position * part.output_stride;
  }
  const PageTable& table = op.page_table;
  const std::int64_t page = table.pages[sequence * table.pages_per_sequence + position / table.page_size];
  return output + (page * table.page_size + position % table.page_size) * part.output_stride;
}

// A block has a row of one part; a thread moves packs p of both halves of a head.
template <typename T, int N>
__global__ void __launch_bounds__(kLargestBlock) rope_split(RopeSplit op) {
  const std::int64_t row = block_index() % op.rows;
  const RopePart& part = op.parts[block_index() / op.rows];
  const std::int64_t half = op.head_dim / 2;
  const std::int64_t packs = half / N;
  const std::int64_t position = position_of(op, row);
  if (position < 0) return;
  const std::int64_t at = position * half;
  const T* input = static_cast<const T*>(part.input) + row * part.input_stride;
  T* output = output_row<T>(op, part, row, position);
  for (std::int64_t i = thread_index(); i < part.heads * packs; i += block_size()) {
    const std::int64_t d = i % packs * N;
    const std::int64_t low = i / packs * op.head_dim + d;
    Pack<T, N> a = load_pack<N>(input + low);
    Pack<T, N> b = load_pack<N>(input + low + half);
    if (part.turn == HeadTurn::kRotated) {
      turn(a, b, load_floats<N>(op.cosine + at + d), load_floats<N>(op.sine + at + d), 1.0f);
    }
    store_pack(output + low, a);
    store_pack(output + low + half, b);
  }
}

// Whether 16-byte accesses meet every part.
template <typename T>
bool is_packed(const RopeSplit& op) {
  for (const RopePart& part : op.parts) {
    if (part.heads == 0) continue;
    if (!are_multiples({part.input_stride, part.output_stride, part.sequence_stride}, kPackOf<T>)) return false;
    if (!are_aligned({part.input, part.output})) return false;
  }
  return are_multiples({op.head_dim / 2}, kPackOf<T>) && are_aligned({op.cosine, op.sine});
}

}  // namespace

void run(const RopeSplit& op, Queue& queue) {
  std::int64_t heads = 0;
  // Where sequences start is known to the device alone.
  const std::int64_t positions = op.starts == nullptr ? op.first_position + op.row_period : 0;
  for (const RopePart& part : op.parts) {
    heads = std::max(heads, part.heads);
    if (part.heads > 0 && part.place == RowPlace::kAtPage) check_pages(op.page_table, positions);
  }
  if (op.rows == 0 || heads == 0 || op.head_dim < 2) return;
  with_compute_type(op.dtype, "rope_split", [&]<typename T>() {
    with_pack<T>(is_packed<T>(op), [&]<typename U, int N>() {
      const std::int64_t packs = heads * (op.head_dim / 2 / N);
      const std::int64_t threads = std::min<std::int64_t>(kLargestBlock, ceil_div(packs, kWarp) * kWarp);
      launch("rope_split", rope_split<U, N>,
             {.blocks = op.rows * std::ssize(op.parts), .threads = static_cast<int>(threads)}, queue, op);
    });
  });
}

void run(const Rope& op, Queue& queue) {
  if (op.rows == 0 || op.heads == 0 || op.head_dim < 2) return;
  with_compute_type(op.dtype, "rope", [&]<typename T>() {
    const bool packed =
        are_multiples({op.head_dim / 2, op.stride}, kPackOf<T>) && are_aligned({op.data, op.cosine, op.sine});
    with_pack<T>(packed, [&]<typename U, int N>() {
      if (op.rotation == Rotation::kForward) return start<U, N, Rotation::kForward>(op, queue);
      start<U, N, Rotation::kBackward>(op, queue);
    });
  });
}

}  // namespace kvloom::cuda
