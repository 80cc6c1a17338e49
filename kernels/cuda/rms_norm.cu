#include "kernels/rms_norm.h"

#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kKept = 4;  // packs of a row that a thread keeps in registers between the two looks at it
// Rows of up to this many packs belong to a warp, longer ones to a block.
constexpr std::int64_t kWarpRow = kWarp * kKept;
// Backward: groups of threads that walk over the rows, each with a sum of its own for the gain. Two blocks for each
// multiprocessor of a large GPU, and yet fixed, so that equal inputs give equal bits on every GPU.
constexpr std::int64_t kBackwardBlocks = 264;

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

// The residual that is added on the way; all null when there is none.
template <typename T>
struct Residual {
  const T* addend;
  T* sum;
};

// Pack p of what is normalised: of the input, or of its sum with the addend, which is written down.
template <int N, typename T>
__device__ Pack<T, N> take_pack(const T* input, const Residual<T>& residual, std::int64_t p) {
  Pack<T, N> pack = load_pack<N>(input + p * N);
  if (residual.addend == nullptr) return pack;
  const Pack<T, N> addend = load_pack<N>(residual.addend + p * N);
#pragma unroll
  for (int i = 0; i < N; ++i) pack.value[i] = from_float<T>(to_float(pack.value[i]) + to_float(addend.value[i]));
  store_pack(residual.sum + p * N, pack);
  return pack;
}

template <typename T, int N, int kThreads>
__global__ void __launch_bounds__(kBlock) rms_norm_forward(const T* input, Residual<T> residual, const float* gain,
                                                           T* output, float* inverse_rms, ForwardShape shape) {
  const Group<kThreads> group;
  const std::int64_t row = group.index();
  if (row >= shape.rows) return;
  input += row * shape.input_stride;
  output += row * shape.output_stride;
  if (residual.addend != nullptr) {
    residual.addend += row * shape.packs * N;
    residual.sum += row * shape.packs * N;
  }
  // A thread looks twice at the same places: the second time at what it wrote itself.
  const T* again = residual.addend != nullptr ? residual.sum : input;
  Pack<T, N> kept[kKept];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const std::int64_t p = group.thread() + i * kThreads;
    if (p >= shape.packs) continue;
    kept[i] = take_pack<N>(input, residual, p);
    sum += sum_of_squares(kept[i]);
  }
  for (std::int64_t p = group.thread() + kKept * kThreads; p < shape.packs; p += kThreads) {
    sum += sum_of_squares(take_pack<N>(input, residual, p));
  }
  sum = combine_of_group<kThreads>(sum, Plus{});
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(shape.packs * N) + shape.epsilon);
  if (inverse_rms != nullptr && group.thread() == 0) inverse_rms[row] = scale;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const std::int64_t p = group.thread() + i * kThreads;
    if (p < shape.packs) write_normed(output, gain, p, kept[i], scale);
  }
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

// grad_input = r (g w - x r^2 mean(g w x)) with g = grad_output, w = gain, r = inverse_rms; the gain's gradient is the
// sum over rows of g x r. A thread keeps its sums in shared memory, element e of its i-th pack at [(i N + e) threads +
// thread], and writes them as the group's row of `partial`.
template <typename T, int N, int kThreads>
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
    float dot = 0;
    for (std::int64_t p = group.thread(), i = 0; p < shape.packs; p += kThreads, ++i) {
      const Pack<T, N> xs = load_pack<N>(x + p * N);
      const Pack<T, N> gs = load_pack<N>(g + p * N);
      const Floats<N> factor = load_floats<N>(gain + p * N);
#pragma unroll
      for (int e = 0; e < N; ++e) {
        const float product = to_float(xs.value[e]) * to_float(gs.value[e]);
        dot += product * factor.value[e];
        sums[(i * N + e) * kBlock] += product * scale;
      }
    }
    dot = combine_of_group<kThreads>(dot, Plus{});
    const float along = dot * scale * scale / static_cast<float>(columns);
    for (std::int64_t p = group.thread(); p < shape.packs; p += kThreads) {
      const Pack<T, N> xs = load_pack<N>(x + p * N);
      const Pack<T, N> gs = load_pack<N>(g + p * N);
      const Floats<N> factor = load_floats<N>(gain + p * N);
      Pack<T, N> out;
      if (shape.accumulate) out = load_pack<N>(result + p * N);
#pragma unroll
      for (int e = 0; e < N; ++e) {
        const float value = scale * (to_float(gs.value[e]) * factor.value[e] - to_float(xs.value[e]) * along);
        out.value[e] = from_float<T>(shape.accumulate ? to_float(out.value[e]) + value : value);
      }
      store_pack(result + p * N, out);
    }
  }
  for (std::int64_t p = group.thread(), i = 0; p < shape.packs; p += kThreads, ++i) {
#pragma unroll
    for (int e = 0; e < N; ++e) partial[group.index() * columns + p * N + e] = sums[(i * N + e) * kBlock];
  }
}

std::int64_t dense_or(std::int64_t stride, std::int64_t columns) { return stride == 0 ? columns : stride; }

template <typename T, int N, int kThreads>
void forward(const RmsNormForward& op, const ForwardShape& shape, Queue& queue) {
  launch("rms_norm_forward", rms_norm_forward<T, N, kThreads>,
         {.blocks = ceil_div(op.rows, Group<kThreads>::kInBlock), .threads = kBlock}, queue,
         static_cast<const T*>(op.input), Residual<T>{static_cast<const T*>(op.addend), static_cast<T*>(op.sum)},
         op.gain, static_cast<T*>(op.output), op.inverse_rms, shape);
}

template <typename T, int N, int kThreads>
void backward(const RmsNormBackward& op, const BackwardShape& shape, Queue& queue) {
  constexpr std::int64_t kGroups = Group<kThreads>::kInBlock;
  const std::int64_t blocks = std::min(kBackwardBlocks, ceil_div(op.rows, kGroups));
  const Scratch<float> partial(queue, blocks * kGroups * op.columns);
  const auto places = static_cast<std::size_t>(ceil_div(shape.packs, kThreads) * N * kBlock);
  launch("rms_norm_backward", rms_norm_backward<T, N, kThreads>,
         {.blocks = blocks, .threads = kBlock, .shared_bytes = places * sizeof(float)}, queue,
         static_cast<const T*>(op.input), op.gain, op.inverse_rms, static_cast<const T*>(op.grad_output),
         static_cast<T*>(op.grad_input), partial.data(), shape);
  add_column_sums({partial.data(), op.grad_gain, blocks * kGroups, op.columns, op.columns}, queue);
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
