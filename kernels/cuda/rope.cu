#include "kernels/rope.h"

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
};

// A block has a row; a thread turns packs p of both halves of a head.
template <typename T, int N, Rotation kRotation>
__global__ void __launch_bounds__(kLargestBlock) rope(T* data, const float* cosine, const float* sine, Shape shape) {
  const std::int64_t row = block_index();
  const std::int64_t half = shape.packs * N;
  const std::int64_t position = shape.first_position + row % shape.row_period;
  for (std::int64_t i = thread_index(); i < shape.head_packs; i += block_size()) {
    const std::int64_t d = i % shape.packs * N;
    T* low = data + row * shape.stride + i / shape.packs * shape.head_dim + d;
    T* high = low + half;
    Pack<T, N> a = load_pack<N>(low);
    Pack<T, N> b = load_pack<N>(high);
    const Floats<N> c = load_floats<N>(cosine + position * half + d);
    const Floats<N> s = load_floats<N>(sine + position * half + d);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float x = to_float(a.value[e]);
      const float y = to_float(b.value[e]);
      const float turn = kRotation == Rotation::kForward ? s.value[e] : -s.value[e];
      a.value[e] = from_float<T>(x * c.value[e] - y * turn);
      b.value[e] = from_float<T>(y * c.value[e] + x * turn);
    }
    store_pack(low, a);
    store_pack(high, b);
  }
}

template <typename T, int N, Rotation kRotation>
void start(const Rope& op, Queue& queue) {
  const std::int64_t packs = op.head_dim / 2 / N;
  const Shape shape{packs, op.heads * packs, op.head_dim, op.stride, op.first_position, op.row_period};
  const std::int64_t threads = std::min<std::int64_t>(kLargestBlock, ceil_div(shape.head_packs, kWarp) * kWarp);
  launch("rope", rope<T, N, kRotation>, {.blocks = op.rows, .threads = static_cast<int>(threads)}, queue,
         static_cast<T*>(op.data), op.cosine, op.sine, shape);
}

}  // namespace

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
