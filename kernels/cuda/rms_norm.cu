#include "kernels/rms_norm.h"

#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kMostKept = 4;  // packs of a row that a thread keeps in registers between the two looks at it
// Rows of up to this many packs belong to a warp, longer ones to a block.
constexpr std::int64_t kWarpRow = kWarp * kMostKept;
// Backward: blocks that walk over the rows, each with a sum of its own for the gain. Two or four for each
// multiprocessor of a large GPU, and yet fixed, so that equal inputs give equal bits on every GPU.
template <int kThreads>
constexpr std::int64_t kBackwardBlocks = kThreads == kWarp ? 264 : 528;

template <typename T, int N>
__device__ float sum_of_squares(const Pack<T, N>& pack) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += to_float(pack.value[i]) * to_float(pack.value[i]);
  return sum;
}

// Which row a group of kThreads threads begins with, and the thread's place in the group.
template <int kThreads>
struct Group {
  static constexpr int kInBlock = kBlock / kThreads;
  __device__ std::int64_t index() const { return block_index() * kInBlock + thread_index() / kThreads; }
  __device__ std::int64_t count() const { return block_count() * kInBlock; }
  __device__ int thread() const { return thread_index() % kThreads; }
};

struct ForwardShape {
  std::int64_t rows;
  std::int64_t packs;  // of a row
  std::int64_t input_stride;
  std::int64_t output_stride;
  float epsilon;
};

template <typename T, int N>
__device__ void write_normed(T* output, const float* gain, std::int64_t p, const Pack<T, N>& input, float scale) {
  const Floats<N> factor = load_floats<N>(gain + p * N);
  Pack<T, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) result.value[i] = from_float<T>(to_float(input.value[i]) * scale * factor.value[i]);
  store_pack(output + p * N, result);
}

// What is normalised: the input, or its sum with a residual, which is written down.
enum class Normed { kInput, kSum };

template <typename T>
struct Residual {
  const T* addend;
  T* sum;
};

template <typename T, int N>
__device__ Pack<T, N> sum_of(const Pack<T, N>& a, const Pack<T, N>& b) {
  Pack<T, N> sum;
#pragma unroll
  for (int i = 0; i < N; ++i) sum.value[i] = from_float<T>(to_float(a.value[i]) + to_float(b.value[i]));
  return sum;
}

// All that a thread keeps is asked for before any of it is written down: a store would hold up the loads behind it.
template <typename T, int N, int kThreads, int kKept, Normed kNormed>
__global__ void __launch_bounds__(kBlock) rms_norm_forward(const T* input, Residual<T> residual, const float* gain,
                                                           T* output, float* inverse_rms, ForwardShape shape) {
  constexpr bool kAdds = kNormed == Normed::kSum;
  const Group<kThreads> group;
  const std::int64_t row = group.index();
  if (row >= shape.rows) return;
  input += row * shape.input_stride;
  output += row * shape.output_stride;
  if constexpr (kAdds) {
    residual.addend += row * shape.packs * N;
    residual.sum += row * shape.packs * N;
  }
  Pack<T, N> kept[kKept];
  Pack<T, N> addends[kAdds ? kKept : 1];
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const std::int64_t p = group.thread() + i * kThreads;
    if (p >= shape.packs) continue;
    kept[i] = load_pack<N>(input + p * N);
    if constexpr (kAdds) addends[i] = load_pack<N>(residual.addend + p * N);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const std::int64_t p = group.thread() + i * kThreads;
    if (p >= shape.packs) continue;
    if constexpr (kAdds) {
      kept[i] = sum_of(kept[i], addends[i]);
      store_pack(residual.sum + p * N, kept[i]);
    }
    sum += sum_of_squares(kept[i]);
  }
  for (std::int64_t p = group.thread() + kKept * kThreads; p < shape.packs; p += kThreads) {
    Pack<T, N> pack = load_pack<N>(input + p * N);
    if constexpr (kAdds) {
      pack = sum_of(pack, load_pack<N>(residual.addend + p * N));
      store_pack(residual.sum + p * N, pack);
    }
    sum += sum_of_squares(pack);
  }
  sum = combine_of_group<kThreads>(sum, Plus{});
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(shape.packs * N) + shape.epsilon);
  if (inverse_rms != nullptr && group.thread() == 0) inverse_rms[row] = scale;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const std::int64_t p = group.thread() + i * kThreads;
    if (p < shape.packs) write_normed(output, gain, p, kept[i], scale);
  }
  // A thread looks twice at the same places: the second time at what it wrote itself.
  const T* again = kAdds ? residual.sum : input;
  for (std::int64_t p = group.thread() + kKept * kThreads; p < shape.packs; p += kThreads) {
    write_normed(output, gain, p, load_pack<N>(again + p * N), scale);
  }
}

struct BackwardShape {
  std::int64_t rows;
  std::int64_t packs;
  std::int64_t input_stride;
  std::int64_t grad_input_stride;
  bool accumulate;
};

// Adds x g r to the gain's sums, which lie kBlock apart; returns the pack's share of sum(g w x).
template <typename T, int N>
__device__ float take_in(const Pack<T, N>& xs, const Pack<T, N>& gs, const float* gain, float scale, float* sums) {
  const Floats<N> factor = load_floats<N>(gain);
  float dot = 0;
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const float product = to_float(xs.value[e]) * to_float(gs.value[e]);
    dot += product * factor.value[e];
    sums[e * kBlock] += product * scale;
  }
  return dot;
}

// `out` = or, when it accumulates, += r (g w - x along).
template <typename T, int N>
__device__ void put_gradient(const Pack<T, N>& xs, const Pack<T, N>& gs, const float* gain, float scale, float along,
                             bool accumulate, Pack<T, N>& out) {
  const Floats<N> factor = load_floats<N>(gain);
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const float value = scale * (to_float(gs.value[e]) * factor.value[e] - to_float(xs.value[e]) * along);
    out.value[e] = from_float<T>(accumulate ? to_float(out.value[e]) + value : value);
  }
}

// grad_input = r (g w - x r^2 mean(g w x)) with g = grad_output, w = gain, r = inverse_rms; the gain's gradient is the
// sum over rows of g x r. A thread keeps its sums in shared memory, element e of its i-th pack at [(i N + e) threads +
// thread]; those of a block's groups, added up in their order, are the block's row of `partial`. All that a thread
// keeps of a row is asked for before the threads wait for one another.
template <typename T, int N, int kThreads, int kKept>
__global__ void __launch_bounds__(kBlock)
    rms_norm_backward(const T* input, const float* gain, const float* inverse_rms, const T* grad_output, T* grad_input,
                      float* partial, BackwardShape shape) {
  const Group<kThreads> group;
  float* sums = dynamic_shared<float>() + thread_index();
  const std::int64_t columns = shape.packs * N;
  for (std::int64_t p = group.thread(), i = 0; p < shape.packs; p += kThreads, ++i) {
#pragma unroll
    for (int e = 0; e < N; ++e) sums[(i * N + e) * kBlock] = 0;
  }
  for (std::int64_t row = group.index(); row < shape.rows; row += group.count()) {
    const T* x = input + row * shape.input_stride;
    const T* g = grad_output + row * columns;
    T* result = grad_input + row * shape.grad_input_stride;
    const float scale = inverse_rms[row];
    Pack<T, N> xs[kKept];
    Pack<T, N> gs[kKept];
    Pack<T, N> out[kKept];
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const std::int64_t p = group.thread() + i * kThreads;
      if (p >= shape.packs) continue;
      xs[i] = load_pack<N>(x + p * N);
      gs[i] = load_pack<N>(g + p * N);
      if (shape.accumulate) out[i] = load_pack<N>(result + p * N);
    }
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const std::int64_t p = group.thread() + i * kThreads;
      if (p < shape.packs) dot += take_in(xs[i], gs[i], gain + p * N, scale, sums + i * N * kBlock);
    }
    for (std::int64_t p = group.thread() + kKept * kThreads, i = kKept; p < shape.packs; p += kThreads, ++i) {
      dot += take_in(load_pack<N>(x + p * N), load_pack<N>(g + p * N), gain + p * N, scale, sums + i * N * kBlock);
    }
    dot = combine_of_group<kThreads>(dot, Plus{});
    const float along = dot * scale * scale / static_cast<float>(columns);
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const std::int64_t p = group.thread() + i * kThreads;
      if (p >= shape.packs) continue;
      put_gradient(xs[i], gs[i], gain + p * N, scale, along, shape.accumulate, out[i]);
      store_pack(result + p * N, out[i]);
    }
    for (std::int64_t p = group.thread() + kKept * kThreads; p < shape.packs; p += kThreads) {
      Pack<T, N> rest;
      if (shape.accumulate) rest = load_pack<N>(result + p * N);
      put_gradient(load_pack<N>(x + p * N), load_pack<N>(g + p * N), gain + p * N, scale, along, shape.accumulate,
                   rest);
      store_pack(result + p * N, rest);
    }
  }
  if constexpr (kThreads < kBlock) {
    block_barrier();
    if (thread_index() >= kThreads) return;
  }
  for (std::int64_t p = group.thread(), i = 0; p < shape.packs; p += kThreads, ++i) {
    Floats<N> total;
#pragma unroll
    for (int e = 0; e < N; ++e) {
      total.value[e] = sums[(i * N + e) * kBlock];
#pragma unroll
      for (int t = kThreads; t < kBlock; t += kThreads) total.value[e] += sums[(i * N + e) * kBlock + t];
    }
    store_floats<N>(partial + block_index() * columns + p * N, total);
  }
}

std::int64_t dense_or(std::int64_t stride, std::int64_t columns) { return stride == 0 ? columns : stride; }

// Calls body.operator()<kKept>(): no more than rows of so many packs can fill.
template <int kThreads, typename Body>
void with_kept(std::int64_t packs, Body&& body) {
  if (packs <= kThreads) return body.template operator()<1>();
  if (packs <= 2 * kThreads) return body.template operator()<2>();
  body.template operator()<kMostKept>();
}

template <typename T, int N, int kThreads>
void forward(const RmsNormForward& op, const ForwardShape& shape, Queue& queue) {
  const auto start = [&](auto* kernel) {
    launch("rms_norm_forward", kernel, {.blocks = ceil_div(op.rows, Group<kThreads>::kInBlock), .threads = kBlock},
           queue, static_cast<const T*>(op.input),
           Residual<T>{static_cast<const T*>(op.addend), static_cast<T*>(op.sum)}, op.gain, static_cast<T*>(op.output),
           op.inverse_rms, shape);
  };
  with_kept<kThreads>(shape.packs, [&]<int kKept>() {
    if (op.addend == nullptr) return start(rms_norm_forward<T, N, kThreads, kKept, Normed::kInput>);
    start(rms_norm_forward<T, N, kThreads, kKept, Normed::kSum>);
  });
}

void require_shared_memory(const RmsNormBackward& op, std::size_t bytes, const Queue& queue) {
  constexpr std::size_t kDeclared = 1 << 10;  // by the kernel itself, rounded up
  int most = 0;
  check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue.device()), "rms_norm");
  if (bytes + kDeclared <= static_cast<std::size_t>(most)) return;
  fail("rms_norm_backward: the sums of {} columns take {} KiB of shared memory, and a block of this GPU gets {} KiB",
       op.columns, bytes >> 10, most >> 10);
}

template <typename T, int N, int kThreads>
void backward(const RmsNormBackward& op, const BackwardShape& shape, Queue& queue) {
  const std::size_t sum_bytes = static_cast<std::size_t>(ceil_div(shape.packs, kThreads) * N * kBlock) * sizeof(float);
  require_shared_memory(op, sum_bytes, queue);
  const std::int64_t blocks = std::min(kBackwardBlocks<kThreads>, ceil_div(op.rows, Group<kThreads>::kInBlock));
  const Scratch<float> partial(queue, blocks * op.columns);
  // To keep more than two packs of all three rows takes more registers than there are.
  launch("rms_norm_backward",
         shape.packs <= kThreads ? rms_norm_backward<T, N, kThreads, 1> : rms_norm_backward<T, N, kThreads, 2>,
         {.blocks = blocks, .threads = kBlock, .shared_bytes = sum_bytes}, queue, static_cast<const T*>(op.input),
         op.gain, op.inverse_rms, static_cast<const T*>(op.grad_output), static_cast<T*>(op.grad_input), partial.data(),
         shape);
  add_column_sums({partial.data(), op.grad_gain, blocks, op.columns, op.columns}, queue);
}

}  // namespace

void run(const RmsNormForward& op, Queue& queue) {
  if (op.rows == 0 || op.columns == 0) return;
  with_compute_type(op.dtype, "rms_norm", [&]<typename T>() {
    const std::int64_t input_stride = dense_or(op.input_stride, op.columns);
    const std::int64_t output_stride = dense_or(op.output_stride, op.columns);
    const bool packed = are_multiples({op.columns, input_stride, output_stride}, kPackOf<T>) &&
                        are_aligned({op.input, op.output, op.gain, op.addend, op.sum});
    with_pack<T>(packed, [&]<typename U, int N>() {
      const ForwardShape shape{op.rows, op.columns / N, input_stride, output_stride, op.epsilon};
      if (shape.packs <= kWarpRow) return forward<U, N, kWarp>(op, shape, queue);
      forward<U, N, kBlock>(op, shape, queue);
    });
  });
}

void run(const RmsNormBackward& op, Queue& queue) {
  if (op.rows == 0 || op.columns == 0) return;
  with_compute_type(op.dtype, "rms_norm", [&]<typename T>() {
    const std::int64_t input_stride = dense_or(op.input_stride, op.columns);
    const std::int64_t grad_stride = dense_or(op.grad_input_stride, op.columns);
    const bool packed = are_multiples({op.columns, input_stride, grad_stride}, kPackOf<T>) &&
                        are_aligned({op.input, op.grad_output, op.grad_input, op.gain});
    with_pack<T>(packed, [&]<typename U, int N>() {
      const BackwardShape shape{op.rows, op.columns / N, input_stride, grad_stride, op.accumulate_input};
      if (shape.packs <= kWarpRow) return backward<U, N, kWarp>(op, shape, queue);
      backward<U, N, kBlock>(op, shape, queue);
    });
  });
}

}  // namespace kvloom::cuda
