#include "kernels/elementwise.h"

#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 256;

template <typename T, int N>
__global__ void __launch_bounds__(kBlock) add(const T* a, const T* b, T* output, std::int64_t packs) {
  const std::int64_t p = block_index() * kBlock + thread_index();
  if (p >= packs) return;
  const Pack<T, N> x = load_pack<N>(a + p * N);
  const Pack<T, N> y = load_pack<N>(b + p * N);
  Pack<T, N> sum;
#pragma unroll
  for (int e = 0; e < N; ++e) sum.value[e] = from_float<T>(to_float(x.value[e]) + to_float(y.value[e]));
  store_pack(output + p * N, sum);
}

struct CastShape {
  std::int64_t rows;
  std::int64_t packs;  // of a row
  std::int64_t input_stride;
  std::int64_t output_stride;
};

// Eight elements a thread, in as many accesses of up to 16 bytes as either side takes; or one.
template <typename From, typename To, int N>
__global__ void __launch_bounds__(kBlock) cast(const From* input, To* output, CastShape shape) {
  const std::int64_t i = block_index() * kBlock + thread_index();
  if (i >= shape.rows * shape.packs) return;
  const std::int64_t row = i / shape.packs;
  const std::int64_t column = i % shape.packs * N;
  const From* from = input + row * shape.input_stride + column;
  To* to = output + row * shape.output_stride + column;
  constexpr int kIn = N == 1 ? 1 : kPackOf<From>;
  constexpr int kOut = N == 1 ? 1 : kPackOf<To>;
  float values[N];
#pragma unroll
  for (int p = 0; p < N; p += kIn) {
    const Pack<From, kIn> pack = load_pack<kIn>(from + p);
#pragma unroll
    for (int e = 0; e < kIn; ++e) values[p + e] = to_float(pack.value[e]);
  }
#pragma unroll
  for (int p = 0; p < N; p += kOut) {
    Pack<To, kOut> pack;
#pragma unroll
    for (int e = 0; e < kOut; ++e) pack.value[e] = from_float<To>(values[p + e]);
    store_pack(to + p, pack);
  }
}

// A block has kBlock packs of a row: `blocks_of_row` blocks a row.
struct BiasShape {
  std::int64_t packs;  // of a row
  std::int64_t blocks_of_row;
  std::int64_t stride;
};

template <typename T, int N>
__global__ void __launch_bounds__(kBlock) bias_forward(T* data, const float* bias, BiasShape shape) {
  const std::int64_t row = block_index() / shape.blocks_of_row;
  const std::int64_t p = block_index() % shape.blocks_of_row * kBlock + thread_index();
  if (p >= shape.packs) return;
  T* place = data + row * shape.stride + p * N;
  Pack<T, N> pack = load_pack<N>(place);
  const Floats<N> added = load_floats<N>(bias + p * N);
#pragma unroll
  for (int e = 0; e < N; ++e) pack.value[e] = from_float<T>(to_float(pack.value[e]) + added.value[e]);
  store_pack(place, pack);
}

__global__ void __launch_bounds__(kBlock) advance(std::int32_t* values, std::int64_t count, std::int32_t by) {
  const std::int64_t i = block_index() * kBlock + thread_index();
  if (i < count) values[i] += by;
}

template <typename From, typename To>
void cast_from_to(const Cast& op, Queue& queue) {
  constexpr int kMost = 8;
  std::int64_t input_stride = op.input_stride == 0 ? op.columns : op.input_stride;
  std::int64_t output_stride = op.output_stride == 0 ? op.columns : op.output_stride;
  const auto* input = static_cast<const From*>(op.input);
  auto* output = static_cast<To*>(op.output);
  const auto start = [&]<int N>(std::int64_t from, std::int64_t rows, std::int64_t columns) {
    const CastShape shape{rows, columns / N, input_stride, output_stride};
    launch("cast", cast<From, To, N>, {.blocks = ceil_div(rows * shape.packs, kBlock), .threads = kBlock}, queue,
           input + from, output + from, shape);
  };
  const bool aligned = are_aligned({op.input, op.output});
  if (op.rows == 1 && aligned) {  // flat: all but the last few
    const std::int64_t most = op.columns / kMost * kMost;
    start.template operator()<kMost>(0, 1, most);
    start.template operator()<1>(most, 1, op.columns - most);
  } else if (aligned && are_multiples({op.columns, input_stride, output_stride}, kMost)) {
    start.template operator()<kMost>(0, op.rows, op.columns);
  } else {
    start.template operator()<1>(0, op.rows, op.columns);
  }
}

template <typename Body>
void with_stored_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kF32:
      return body.template operator()<float>();
    case DType::kBF16:
      return body.template operator()<Bf16>();
    case DType::kF16:
      return body.template operator()<Half>();
    case DType::kF64:
      return body.template operator()<double>();
    default:
      fail("cast: f32, bf16, f16 and f64 can be cast, not {}", name_of(dtype));
  }
}

}  // namespace

void run(const Add& op, Queue& queue) {
  if (op.count == 0) return;
  with_compute_type(op.dtype, "add", [&]<typename T>() {
    const bool packed = op.count % kPackOf<T> == 0 && are_aligned({op.a, op.b, op.output});
    with_pack<T>(packed, [&]<typename U, int N>() {
      launch("add", add<U, N>, {.blocks = ceil_div(op.count / N, kBlock), .threads = kBlock}, queue,
             static_cast<const U*>(op.a), static_cast<const U*>(op.b), static_cast<U*>(op.output), op.count / N);
    });
  });
}

void run(const Cast& op, Queue& queue) {
  if (op.rows == 0 || op.columns == 0) return;
  with_stored_type(op.input_dtype, [&]<typename From>() {
    with_stored_type(op.output_dtype, [&]<typename To>() { cast_from_to<From, To>(op, queue); });
  });
}

void run(const BiasForward& op, Queue& queue) {
  with_compute_type(op.dtype, "bias_forward", [&]<typename T>() {
    const bool packed = are_multiples({op.columns, op.stride}, kPackOf<T>) && are_aligned({op.data, op.bias});
    with_pack<T>(packed, [&]<typename U, int N>() {
      const BiasShape shape{op.columns / N, ceil_div(op.columns / N, kBlock), op.stride};
      launch("bias_forward", bias_forward<U, N>, {.blocks = op.rows * shape.blocks_of_row, .threads = kBlock}, queue,
             static_cast<U*>(op.data), op.bias, shape);
    });
  });
}

void run(const Advance& op, Queue& queue) {
  launch("advance", advance, {.blocks = ceil_div(op.count, kBlock), .threads = kBlock}, queue, op.values, op.count,
         op.by);
}

}  // namespace kvloom::cuda
