// Attention backward on tensor cores, Dao 2023, "FlashAttention-2" (arXiv 2307.08691), algorithm 2, in two kernels:
// one block a tile of queries for their gradient, one block a tile of keys for those of keys and values. Scores are
// computed twice so that each sum has one owner, who forms it in a fixed order.
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/attention_ways.h"
#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kOwn = kAttentionWarps * kWarpRows;  // rows of a block: queries of one kernel, keys of the other
constexpr int kOther = 32;                         // rows that it walks over at a time

using Scores = Accumulator<kOther / 8>;

// Two tiles of own rows, and two of the others with room for the next ones.
template <int kDim>
struct Shared {
  using Own = Tile<kOwn, kDim>;
  using Other = Tile<kOther, kDim>;
  static constexpr std::size_t kTileBytes = 2 * Own::kBytes + 4 * Other::kBytes;
  static constexpr std::size_t kBytes = kTileBytes + 4 * kOther * sizeof(float);

  Bf16* data = dynamic_shared<Bf16>();

  __device__ Own own(int which) const { return {data + which * Own::kElements}; }
  // By turn: one is worked on while the other is filled.
  __device__ Other first(int turn) const { return {own(2).data + 2 * turn * Other::kElements}; }
  __device__ Other second(int turn) const { return {first(turn).data + Other::kElements}; }
  // Of the queries that are walked over, f32 [kOther].
  __device__ float* log_sum_exp(int turn) const { return reinterpret_cast<float*>(first(2).data) + 2 * turn * kOther; }
  __device__ float* delta(int turn) const { return log_sum_exp(turn) + kOther; }
};

struct Operands {
  const Bf16* query;
  const Bf16* grad_output;
  const Bf16* key;
  const Bf16* value;

  // Of the heads of one sequence.
  __device__ Operands(const AttentionBackward& op, std::int64_t batch, std::int64_t head, std::int64_t kv_head)
      : query(static_cast<const Bf16*>(op.query) + query_row(op.shape, batch, 0) + head * op.shape.head_dim),
        grad_output(static_cast<const Bf16*>(op.grad_output) + output_row(op.shape, batch, 0) +
                    head * op.shape.head_dim),
        key(static_cast<const Bf16*>(op.key) + batch * op.shape.key_batch_stride + kv_head * op.shape.head_dim),
        value(static_cast<const Bf16*>(op.value) + batch * op.shape.key_batch_stride + kv_head * op.shape.head_dim) {}
};

// The softmax weight of one score and, times its query's scale, the gradient of that score.
struct WeightAndSlope {
  float weight;
  float slope;
};
__device__ __forceinline__ WeightAndSlope weigh(float score, float product, float scale, float log_sum_exp, float delta,
                                                bool seen) {
  const float weight = seen ? exp2f((score * scale - log_sum_exp) * kLog2E) : 0.0f;
  return {weight, seen ? weight * (product - delta) : 0.0f};
}

// own: queries and the gradients of their outputs; walks over keys and values.
template <int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_grad_query(AttentionBackward op, const float* delta, std::int64_t tiles) {
  const AttentionShape& shape = op.shape;
  const Shared<kDim> shared{};
  const BlockOfHead block = block_of_head(shape.heads, tiles);
  const Operands from(op, block.batch, block.head, block.head / (shape.heads / shape.kv_heads));
  const std::int64_t first = block.tile * kOwn;
  const int warp_row = thread_index() / 32 * kWarpRows;
  const Span visible = keys_of_queries(shape, first, first + kOwn);
  const std::int64_t begin = visible.begin / kOther * kOther;
  const Span queries{0, shape.queries};
  shared.own(0).load(from.query, shape.query_stride, first, queries);
  shared.own(1).load(from.grad_output, shape.output_stride, first, queries);
  if (begin < visible.end) {
    shared.first(0).load(from.key, shape.key_stride, begin, visible);
    shared.second(0).load(from.value, shape.key_stride, begin, visible);
  }
  copy_async_commit();

  Span own[2];
  float log_sum_exp[2] = {0, 0};
  float mean[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::int64_t n = first + warp_row + Scores::row(2 * i);
    own[i] = keys_of_query(shape, n);
    if (own[i].begin >= own[i].end) continue;
    log_sum_exp[i] = op.log_sum_exp[statistics_at(shape, block.batch, n, block.head)];
    mean[i] = delta[statistics_at(shape, block.batch, n, block.head)];
  }
  Accumulator<kDim / 8> sums;
  sums.clear();
  int turn = 0;
  for (std::int64_t k = begin; k < visible.end; k += kOther, turn ^= 1) {
    if (k + kOther < visible.end) {
      shared.first(turn ^ 1).load(from.key, shape.key_stride, k + kOther, visible);
      shared.second(turn ^ 1).load(from.value, shape.key_stride, k + kOther, visible);
    }
    copy_async_commit();
    copy_async_wait<1>();
    block_barrier();
    Scores scores;
    Scores products;
    scores.clear();
    products.clear();
    add_row_products(shared.own(0), warp_row, shared.first(turn), scores);
    add_row_products(shared.own(1), warp_row, shared.second(turn), products);
    const bool whole = sees_all(shape, first + warp_row, kWarpRows, k, kOther);
#pragma unroll
    for (int p = 0; p < kOther / 8; ++p) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const std::int64_t j = k + Scores::column(p, e);
        const bool seen = whole || (j >= own[e / 2].begin && j < own[e / 2].end);
        scores.piece[p][e] =
            weigh(scores.piece[p][e], products.piece[p][e], shape.scale, log_sum_exp[e / 2], mean[e / 2], seen).slope;
      }
    }
    add_weighted_rows(scores, shared.first(turn), sums);
    block_barrier();
  }
  copy_async_wait<0>();

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::int64_t n = first + warp_row + Scores::row(2 * i);
    if (n >= shape.queries) continue;
    Bf16* grad = static_cast<Bf16*>(op.grad_query) + (block.batch * shape.queries + n) * op.grad_query_stride +
                 block.head * kDim;
#pragma unroll
    for (int p = 0; p < kDim / 8; ++p) {
      *reinterpret_cast<std::uint32_t*>(grad + Accumulator<kDim / 8>::column(p, 0)) =
          pack_bf16(sums.piece[p][2 * i] * shape.scale, sums.piece[p][2 * i + 1] * shape.scale);
    }
  }
}

// Which queries of which head a block of keys looks at in its i-th step.
struct Walk {
  std::int64_t first_head;
  std::int64_t begin;  // of queries
  std::int64_t tiles;  // of queries, for each head
  std::int64_t steps;

  __device__ std::int64_t head(std::int64_t step) const { return first_head + step / tiles; }
  __device__ std::int64_t query(std::int64_t step) const { return begin + step % tiles * kOther; }
};

// Starts copying what step `step` looks at.
template <int kDim>
__device__ void load_queries(const AttentionBackward& op, const float* delta, const Shared<kDim>& shared, int turn,
                             const Walk& walk, std::int64_t step, std::int64_t batch) {
  const AttentionShape& shape = op.shape;
  const Operands from(op, batch, walk.head(step), 0);
  const std::int64_t n = walk.query(step);
  const Span queries{0, shape.queries};
  shared.first(turn).load(from.query, shape.query_stride, n, queries);
  shared.second(turn).load(from.grad_output, shape.output_stride, n, queries);
  if (thread_index() < kOther) {
    const std::int64_t row = n + thread_index();
    const bool inside = row < shape.queries;
    const std::int64_t at = statistics_at(shape, batch, inside ? row : 0, walk.head(step));
    shared.log_sum_exp(turn)[thread_index()] = inside ? op.log_sum_exp[at] : 0.0f;
    shared.delta(turn)[thread_index()] = inside ? delta[at] : 0.0f;
  }
}

// own: keys and values; walks over the queries that see them, of all heads that read them. Products have keys as rows
// and queries as columns.
template <int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_grad_key_value(AttentionBackward op, const float* delta, std::int64_t tiles) {
  const AttentionShape& shape = op.shape;
  const Shared<kDim> shared{};
  const BlockOfHead block = block_of_head(shape.kv_heads, tiles);
  const std::int64_t first = block.tile * kOwn;
  const int warp_row = thread_index() / 32 * kWarpRows;
  const std::int64_t group = shape.heads / shape.kv_heads;
  const Span readers = queries_of_keys(shape, first, smaller(shape.keys, first + kOwn));
  if (readers.begin >= readers.end) return;
  const std::int64_t begin = readers.begin / kOther * kOther;
  const std::int64_t query_tiles = (readers.end - begin + kOther - 1) / kOther;
  const Walk walk{block.head * group, begin, query_tiles, group * query_tiles};
  const Span visible = keys_of_queries(shape, 0, shape.queries);
  const Operands own(op, block.batch, 0, block.head);
  shared.own(0).load(own.key, shape.key_stride, first, visible);
  shared.own(1).load(own.value, shape.key_stride, first, visible);
  load_queries(op, delta, shared, 0, walk, 0, block.batch);
  copy_async_commit();

  Accumulator<kDim / 8> grad_key;
  Accumulator<kDim / 8> grad_value;
  grad_key.clear();
  grad_value.clear();
  int turn = 0;
  for (std::int64_t step = 0; step < walk.steps; ++step, turn ^= 1) {
    if (step + 1 < walk.steps) load_queries(op, delta, shared, turn ^ 1, walk, step + 1, block.batch);
    copy_async_commit();
    copy_async_wait<1>();
    block_barrier();
    Scores weights;
    Scores slopes;
    weights.clear();
    slopes.clear();
    add_row_products(shared.own(0), warp_row, shared.first(turn), weights);
    add_row_products(shared.own(1), warp_row, shared.second(turn), slopes);
    const bool whole = sees_all(shape, walk.query(step), kOther, first + warp_row, kWarpRows);
#pragma unroll
    for (int p = 0; p < kOther / 8; ++p) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = Scores::column(p, e);
        const std::int64_t j = first + warp_row + Scores::row(e);
        const Span keys = whole ? Span{0, shape.keys} : keys_of_query(shape, walk.query(step) + column);
        const WeightAndSlope result =
            weigh(weights.piece[p][e], slopes.piece[p][e], shape.scale, shared.log_sum_exp(turn)[column],
                  shared.delta(turn)[column], j >= keys.begin && j < keys.end);
        weights.piece[p][e] = result.weight;
        slopes.piece[p][e] = result.slope;
      }
    }
    add_weighted_rows(weights, shared.second(turn), grad_value);
    add_weighted_rows(slopes, shared.first(turn), grad_key);
    block_barrier();
  }
  copy_async_wait<0>();

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::int64_t j = first + warp_row + Scores::row(2 * i);
    if (j >= shape.keys) continue;
    const std::int64_t at = ((block.batch * shape.keys + j) * shape.kv_heads + block.head) * kDim;
#pragma unroll
    for (int p = 0; p < kDim / 8; ++p) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const std::int64_t place = at + Accumulator<kDim / 8>::column(p, e);
        op.grad_key[place] += grad_key.piece[p][2 * i + e] * shape.scale;
        op.grad_value[place] += grad_value.piece[p][2 * i + e];
      }
    }
  }
}

template <int kDim>
void start(const AttentionBackward& op, const float* delta, Queue& queue) {
  const AttentionShape& shape = op.shape;
  const std::int64_t query_tiles = ceil_div(shape.queries, kOwn);
  const std::int64_t key_tiles = ceil_div(shape.keys, kOwn);
  launch("attention_grad_query", attention_grad_query<kDim>,
         {.blocks = shape.batch * shape.heads * query_tiles,
          .threads = kAttentionThreads,
          .shared_bytes = Shared<kDim>::kBytes},
         queue, op, delta, query_tiles);
  if (op.grad_key == nullptr) return;
  launch("attention_grad_key_value", attention_grad_key_value<kDim>,
         {.blocks = shape.batch * shape.kv_heads * key_tiles,
          .threads = kAttentionThreads,
          .shared_bytes = Shared<kDim>::kBytes},
         queue, op, delta, key_tiles);
}

}  // namespace

bool can_use_tensor_cores(const AttentionBackward& op) {
  const AttentionShape& shape = op.shape;
  return shape.dtype == DType::kBF16 && (shape.head_dim == 64 || shape.head_dim == 128) &&
         are_multiples(
             {shape.query_stride, shape.output_stride, shape.key_stride, shape.key_batch_stride, op.grad_query_stride},
             8) &&
         are_aligned({op.query, op.key, op.value, op.grad_output, op.grad_query});
}

void run_tensor_cores(const AttentionBackward& op, const float* delta, Queue& queue) {
  if (op.shape.head_dim == 64) return start<64>(op, delta, queue);
  start<128>(op, delta, queue);
}

}  // namespace kvloom::cuda
