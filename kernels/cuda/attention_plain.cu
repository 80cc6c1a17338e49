// Attention of any type and any head_dim of up to 256, in f32 arithmetic without tensor cores: for f32, for head sizes
// that the tensor-core kernels do not have, and to check those by.
#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/attention_span.h"
#include "kernels/cuda/attention_ways.h"
#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kTile = 32;       // queries, and keys, at a time
constexpr int kRowThreads = 4;  // threads that share a query's row, or a key's
constexpr int kBlock = kTile * kRowThreads;
constexpr int kKeysOfThread = kTile / kRowThreads;
constexpr int kScoreStride = kTile + 1;
constexpr std::int64_t kLargestHead = 256;

// Odd distances between rows in shared memory keep threads that walk down rows on different banks.
__host__ __device__ constexpr int row_stride(std::int64_t head_dim) { return static_cast<int>(head_dim) | 1; }

// Rows [first, first + kTile) of a head as f32, zeros outside [span.begin, span.end).
template <typename FromRows>
__device__ void load_tile(float* tile, const FromRows& from, std::int64_t first, Span span, int dim) {
  for (int i = thread_index(); i < kTile * dim; i += kBlock) {
    const int r = i / dim;
    const int d = i % dim;
    const std::int64_t row = first + r;
    const bool inside = row >= span.begin && row < span.end;
    tile[r * row_stride(dim) + d] = inside ? to_float(from.at(row)[d]) : 0.0f;
  }
}
template <typename T>
__device__ void load_tile(float* tile, const T* from, std::int64_t stride, std::int64_t first, Span span, int dim) {
  load_tile(tile, DenseRows<T>{from, stride}, first, span, dim);
}

struct Thread {
  __device__ Thread() : row(thread_index() / kRowThreads), part(thread_index() % kRowThreads) {}
  int row;
  int part;
};

// scores[i] = a row . b row (part + 4 i).
__device__ void row_products(const float* a, const float* b, int dim, Thread thread, float (&products)[kKeysOfThread]) {
  const int stride = row_stride(dim);
#pragma unroll
  for (int i = 0; i < kKeysOfThread; ++i) products[i] = 0;
  for (int d = 0; d < dim; ++d) {
    const float x = a[thread.row * stride + d];
#pragma unroll
    for (int i = 0; i < kKeysOfThread; ++i) {
      products[i] += x * b[(thread.part + kRowThreads * i) * stride + d];
    }
  }
}

// sums[i] += sum_r weights[r] rows[r][part + 4 i], over kTile rows; weights `step` apart.
template <int kDims>
__device__ void add_weighted_rows(const float* weights, int step, const float* rows, int dim, int part,
                                  float (&sums)[kDims]) {
  for (int r = 0; r < kTile; ++r) {
    const float weight = weights[r * step];
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      const int d = part + kRowThreads * i;
      if (d < dim) sums[i] += weight * rows[r * row_stride(dim) + d];
    }
  }
}

// Blocks of forward that a multiprocessor of an H100 has room for, by their shared memory and by what they make of it.
template <int kDims>
constexpr int kResident = kDims <= 16   ? 5
                          : kDims <= 32 ? 4
                                        : 2;

template <typename T, int kDims, typename KeyLayout>
__global__ void __launch_bounds__(kBlock, kResident<kDims>)
    attention_plain_forward(AttentionForward op, KeyLayout layout, std::int64_t tiles) {
  const BlockOfHead block = block_of_queries(op.shape, tiles);
  const AttentionShape shape = shape_of(op, block.batch);
  const int dim = static_cast<int>(shape.head_dim);
  const int tile_floats = kTile * row_stride(dim);
  auto* query = dynamic_shared<float>();
  float* key = query + tile_floats;
  float* value = key + tile_floats;
  float* weights = value + tile_floats;
  const Thread thread;
  const std::int64_t first = std::int64_t{block.tile} * kTile;
  const int kv_head = block.head / group_of(shape);
  const auto keys = layout.template rows<T>(op, op.key, block.batch, kv_head);
  const auto values = layout.template rows<T>(op, op.value, block.batch, kv_head);
  load_tile(query, static_cast<const T*>(op.query) + query_row(shape, block.batch, 0) + block.head * dim,
            shape.query_stride, first, {0, shape.queries}, dim);
  const Span visible = keys_of_queries(shape, first, first + kTile);
  const Span own = keys_of_query(shape, first + thread.row);
  RunningSoftmax softmax;
  float sums[kDims] = {};
  for (std::int64_t k = visible.begin / kTile * kTile; k < visible.end; k += kTile) {
    block_barrier();
    load_tile(key, keys, k, visible, dim);
    load_tile(value, values, k, visible, dim);
    block_barrier();
    float scores[kKeysOfThread];
    row_products(query, key, dim, thread, scores);
    float largest = kNothing;
#pragma unroll
    for (int i = 0; i < kKeysOfThread; ++i) {
      const std::int64_t j = k + thread.part + kRowThreads * i;
      scores[i] = j >= own.begin && j < own.end ? scores[i] * shape.scale * kLog2E : kNothing;
      largest = fmaxf(largest, scores[i]);
    }
    largest = fmaxf(largest, shuffle_xor(largest, 1));
    largest = fmaxf(largest, shuffle_xor(largest, 2));
    const float factor = softmax.raise(largest);
    float total = 0;
#pragma unroll
    for (int i = 0; i < kKeysOfThread; ++i) {
      const float weight = softmax.weight(scores[i]);
      total += weight;
      weights[thread.row * kScoreStride + thread.part + kRowThreads * i] = weight;
    }
    total += shuffle_xor(total, 1);
    total += shuffle_xor(total, 2);
    softmax.total += total;
#pragma unroll
    for (int i = 0; i < kDims; ++i) sums[i] *= factor;
    warp_barrier();  // a row's weights are written and read by lanes of one warp
    add_weighted_rows(weights + thread.row * kScoreStride, 1, value, dim, thread.part, sums);
    warp_barrier();
  }
  const std::int64_t n = first + thread.row;
  if (n >= shape.queries) return;
  T* output = static_cast<T*>(op.output) + output_row(shape, block.batch, n) + block.head * dim;
#pragma unroll
  for (int i = 0; i < kDims; ++i) {
    const int d = thread.part + kRowThreads * i;
    if (d < dim) output[d] = from_float<T>(sums[i] * softmax.inverse_total());
  }
  if (op.log_sum_exp != nullptr && thread.part == 0) {
    op.log_sum_exp[statistics_at(shape, block.batch, n, block.head)] = softmax.log_sum_exp();
  }
}

// The tiles of one (queries, keys) pair in backward, all f32 in shared memory.
struct BackwardTiles {
  float* query;
  float* grad_output;
  float* key;
  float* value;
  float* weights;  // [query][key], kScoreStride apart
  float* slopes;

  __device__ explicit BackwardTiles(int dim) {
    const int floats = kTile * row_stride(dim);
    query = dynamic_shared<float>();
    grad_output = query + floats;
    key = grad_output + floats;
    value = key + floats;
    weights = value + floats;
    slopes = weights + kTile * kScoreStride;
  }
};

// weights = softmax, slopes = gradient of the scores, for the queries from n on and the keys from k on.
__device__ void score_gradients(const AttentionBackward& op, const float* delta, const BackwardTiles& tiles,
                                BlockOfHead at, std::int64_t n, std::int64_t k) {
  const AttentionShape& shape = op.shape;
  const int dim = static_cast<int>(shape.head_dim);
  const Thread thread;
  const Span own = keys_of_query(shape, n + thread.row);
  float scores[kKeysOfThread];
  float products[kKeysOfThread];
  row_products(tiles.query, tiles.key, dim, thread, scores);
  row_products(tiles.grad_output, tiles.value, dim, thread, products);
  float log_sum_exp = 0;
  float mean = 0;
  if (own.begin < own.end) {
    const std::int64_t place = statistics_at(shape, at.batch, n + thread.row, at.head);
    log_sum_exp = op.log_sum_exp[place];
    mean = delta[place];
  }
#pragma unroll
  for (int i = 0; i < kKeysOfThread; ++i) {
    const int column = thread.part + kRowThreads * i;
    const bool seen = k + column >= own.begin && k + column < own.end;
    const float weight = seen ? exp2f((scores[i] * shape.scale - log_sum_exp) * kLog2E) : 0.0f;
    tiles.weights[thread.row * kScoreStride + column] = weight;
    tiles.slopes[thread.row * kScoreStride + column] = seen ? weight * (products[i] - mean) * shape.scale : 0.0f;
  }
}

template <typename T, int kDims>
__global__ void __launch_bounds__(kBlock)
    attention_plain_grad_query(AttentionBackward op, const float* delta, std::int64_t tile_count) {
  const AttentionShape& shape = op.shape;
  const int dim = static_cast<int>(shape.head_dim);
  const BackwardTiles tiles(dim);
  const BlockOfHead block = block_of_queries(shape, tile_count);
  const Thread thread;
  const std::int64_t first = std::int64_t{block.tile} * kTile;
  const int kv_head = block.head / group_of(shape);
  const std::int64_t kv_at = block.batch * shape.key_batch_stride + kv_head * dim;
  load_tile(tiles.query, static_cast<const T*>(op.query) + query_row(shape, block.batch, 0) + block.head * dim,
            shape.query_stride, first, {0, shape.queries}, dim);
  load_tile(tiles.grad_output,
            static_cast<const T*>(op.grad_output) + output_row(shape, block.batch, 0) + block.head * dim,
            shape.output_stride, first, {0, shape.queries}, dim);
  const Span visible = keys_of_queries(shape, first, first + kTile);
  float sums[kDims] = {};
  for (std::int64_t k = visible.begin / kTile * kTile; k < visible.end; k += kTile) {
    block_barrier();
    load_tile(tiles.key, static_cast<const T*>(op.key) + kv_at, shape.key_stride, k, visible, dim);
    load_tile(tiles.value, static_cast<const T*>(op.value) + kv_at, shape.key_stride, k, visible, dim);
    block_barrier();
    score_gradients(op, delta, tiles, block, first, k);
    warp_barrier();
    add_weighted_rows(tiles.slopes + thread.row * kScoreStride, 1, tiles.key, dim, thread.part, sums);
  }
  const std::int64_t n = first + thread.row;
  if (n >= shape.queries) return;
  T* grad =
      static_cast<T*>(op.grad_query) + (block.batch * shape.queries + n) * op.grad_query_stride + block.head * dim;
#pragma unroll
  for (int i = 0; i < kDims; ++i) {
    const int d = thread.part + kRowThreads * i;
    if (d < dim) grad[d] = from_float<T>(sums[i]);
  }
}

// A block has a tile of keys of one KV head and walks over all queries of all heads that read it, in order.
template <typename T, int kDims>
__global__ void __launch_bounds__(kBlock)
    attention_plain_grad_key_value(AttentionBackward op, const float* delta, std::int64_t tile_count) {
  const AttentionShape& shape = op.shape;
  const int dim = static_cast<int>(shape.head_dim);
  const BackwardTiles tiles(dim);
  const BlockOfHead block = block_of_keys(shape, tile_count);
  const Thread thread;
  const std::int64_t first = std::int64_t{block.tile} * kTile;
  const std::int64_t kv_at = block.batch * shape.key_batch_stride + block.head * dim;
  const Span visible = keys_of_queries(shape, 0, shape.queries);
  load_tile(tiles.key, static_cast<const T*>(op.key) + kv_at, shape.key_stride, first, visible, dim);
  load_tile(tiles.value, static_cast<const T*>(op.value) + kv_at, shape.key_stride, first, visible, dim);
  const Span readers = queries_of_keys(shape, first, smaller(shape.keys, first + kTile));
  const int group = group_of(shape);
  float grad_key[kDims] = {};
  float grad_value[kDims] = {};
  for (int head = block.head * group; head < (block.head + 1) * group; ++head) {
    for (std::int64_t n = readers.begin / kTile * kTile; n < readers.end; n += kTile) {
      block_barrier();
      load_tile(tiles.query, static_cast<const T*>(op.query) + query_row(shape, block.batch, 0) + head * dim,
                shape.query_stride, n, {0, shape.queries}, dim);
      load_tile(tiles.grad_output,
                static_cast<const T*>(op.grad_output) + output_row(shape, block.batch, 0) + head * dim,
                shape.output_stride, n, {0, shape.queries}, dim);
      block_barrier();
      score_gradients(op, delta, tiles, {block.batch, head, 0}, n, first);
      block_barrier();
      add_weighted_rows(tiles.weights + thread.row, kScoreStride, tiles.grad_output, dim, thread.part, grad_value);
      add_weighted_rows(tiles.slopes + thread.row, kScoreStride, tiles.query, dim, thread.part, grad_key);
    }
  }
  const std::int64_t j = first + thread.row;
  if (j >= shape.keys) return;
  const std::int64_t at = ((block.batch * shape.keys + j) * shape.kv_heads + block.head) * dim;
#pragma unroll
  for (int i = 0; i < kDims; ++i) {
    const int d = thread.part + kRowThreads * i;
    if (d >= dim) continue;
    op.grad_key[at + d] += grad_key[i];
    op.grad_value[at + d] += grad_value[i];
  }
}

// Calls body.operator()<T, dims of a thread>().
template <typename Body>
void with_head(const AttentionShape& shape, Body&& body) {
  if (shape.head_dim > kLargestHead) fail("attention: head_dim {}; at most {} on a GPU", shape.head_dim, kLargestHead);
  with_compute_type(shape.dtype, "attention", [&]<typename T>() {
    if (shape.head_dim <= 64) return body.template operator()<T, 64 / kRowThreads>();
    if (shape.head_dim <= 128) return body.template operator()<T, 128 / kRowThreads>();
    body.template operator()<T, 256 / kRowThreads>();
  });
}

std::size_t shared_bytes(std::int64_t head_dim, int tiles, int score_tiles) {
  return sizeof(float) *
         static_cast<std::size_t>(tiles * kTile * row_stride(head_dim) + score_tiles * kTile * kScoreStride);
}

}  // namespace

void run_plain(const AttentionForward& op, Queue& queue) {
  const AttentionShape& shape = op.shape;
  const std::int64_t tiles = ceil_div(shape.queries, kTile);
  with_head(shape, [&]<typename T, int kDims>() {
    with_key_layout(op, [&]<typename KeyLayout>(KeyLayout layout) {
      launch("attention_plain_forward", attention_plain_forward<T, kDims, KeyLayout>,
             {.blocks = shape.batch * shape.heads * tiles,
              .threads = kBlock,
              .shared_bytes = shared_bytes(shape.head_dim, 3, 1)},
             queue, op, layout, tiles);
    });
  });
}

void run_plain(const AttentionBackward& op, const float* delta, Queue& queue) {
  const AttentionShape& shape = op.shape;
  const std::int64_t query_tiles = ceil_div(shape.queries, kTile);
  const std::int64_t key_tiles = ceil_div(shape.keys, kTile);
  const std::size_t bytes = shared_bytes(shape.head_dim, 4, 2);
  with_head(shape, [&]<typename T, int kDims>() {
    launch("attention_plain_grad_query", attention_plain_grad_query<T, kDims>,
           {.blocks = shape.batch * shape.heads * query_tiles, .threads = kBlock, .shared_bytes = bytes}, queue, op,
           delta, query_tiles);
    if (op.grad_key == nullptr) return;
    launch("attention_plain_grad_key_value", attention_plain_grad_key_value<T, kDims>,
           {.blocks = shape.batch * shape.kv_heads * key_tiles, .threads = kBlock, .shared_bytes = bytes}, queue, op,
           delta, key_tiles);
  });
}

}  // namespace kvloom::cuda
