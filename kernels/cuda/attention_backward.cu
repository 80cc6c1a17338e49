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

// Of a query and a head.
struct Statistics {
  float log_sum_exp;
  float delta;

  // With log_sum_exp in units of base 2. Not done where these are loaded: it would wait for them.
  __device__ __forceinline__ Statistics in_base_2() const { return {log_sum_exp * kLog2E, delta}; }
};

// Two tiles of own rows, and two of the others with room for the next ones.
template <int kDim>
struct Shared {
  using Own = Tile<kOwn, kDim>;
  using Other = Tile<kOther, kDim>;
  static constexpr std::size_t kTileBytes = 2 * Own::kBytes + 4 * Other::kBytes;
  static constexpr std::size_t kBytes = kTileBytes + 2 * kOther * sizeof(Statistics);

  Bf16* data = dynamic_shared<Bf16>();

  __device__ Own own(int which) const { return {data + which * Own::kElements}; }
  // By turn: one is worked on while the other is filled.
  __device__ Other first(int turn) const { return {own(2).data + 2 * turn * Other::kElements}; }
  __device__ Other second(int turn) const { return {first(turn).data + Other::kElements}; }
  // Of the queries that are walked over, [kOther], in base 2.
  __device__ Statistics* statistics(int turn) const {
    return reinterpret_cast<Statistics*>(first(2).data) + turn * kOther;
  }
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

// Turns scores into softmax weights, and products into the gradients of scores, but for the factor shape.scale. of(p,
// e) are the statistics of an element's query, in base 2; column 0 is `first`.
template <typename StatisticsOf>
__device__ __forceinline__ void weigh(Scores& scores, Scores& products, float scale, const WarpSight& sight, int first,
                                      StatisticsOf&& of) {
#pragma unroll
  for (int p = 0; p < kOther / 8; ++p) {
#pragma unroll
    for (int e = 0; e < 4; ++e) scores.piece[p][e] = scores.piece[p][e] * (scale * kLog2E) - of(p, e).log_sum_exp;
  }
  sight.mask(scores, first);
#pragma unroll
  for (int p = 0; p < kOther / 8; ++p) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores.piece[p][e] = exp2_flushed(scores.piece[p][e]);
      products.piece[p][e] = scores.piece[p][e] * (products.piece[p][e] - of(p, e).delta);
    }
  }
}

// own: queries and the gradients of their outputs; walks over keys and values.
template <int kDim>
__global__ void __launch_bounds__(kAttentionThreads, kDim == 64 ? 4 : 3)
    attention_grad_query(AttentionBackward op, const float* delta, std::int64_t tiles) {
  const AttentionShape& shape = op.shape;
  const Shared<kDim> shared{};
  const BlockOfHead block = block_of_queries(shape, tiles);
  const Operands from(op, block.batch, block.head, block.head / group_of(shape));
  const DenseRows<Bf16> keys{from.key, shape.key_stride};
  const int first = block.tile * kOwn;
  const int warp_row = thread_index() / 32 * kWarpRows;
  const Range visible(keys_of_queries(shape, first, first + kOwn));
  const int begin = visible.begin / kOther * kOther;
  const Range queries({0, shape.queries});
  shared.own(0).load(from.query, shape.query_stride, first, queries);
  shared.own(1).load(from.grad_output, shape.output_stride, first, queries);
  if (visible.begin < visible.end) load_pairs(shared.first(0), shared.second(0), keys, from.value, begin, visible);
  copy_async_commit();

  const WarpSight sight = sight_of_rows([&](int row) { return keys_of_query(shape, first + warp_row + row); });
  Statistics statistics[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (sight.own[i].begin >= sight.own[i].end) continue;
    const std::int64_t at = statistics_at(shape, block.batch, first + warp_row + Scores::row(2 * i), block.head);
    statistics[i] = Statistics{op.log_sum_exp[at], delta[at]}.in_base_2();
  }
  Accumulator<kDim / 8> sums;
  sums.clear();
  int turn = 0;
  for (int k = begin; k < visible.end; k += kOther, turn ^= 1) {
    copy_async_wait<0>();
    block_barrier();  // this tile is there, and all have done with the one before, where the next is put
    if (k + kOther < visible.end) {
      load_pairs(shared.first(turn ^ 1), shared.second(turn ^ 1), keys, from.value, k + kOther, visible);
    }
    copy_async_commit();
    Scores weights;
    Scores slopes;
    weights.clear();
    slopes.clear();
    add_row_products(shared.own(0), warp_row, shared.first(turn), weights);
    add_row_products(shared.own(1), warp_row, shared.second(turn), slopes);
    weigh(weights, slopes, shape.scale, sight, k, [&](int, int e) { return statistics[e / 2]; });
    add_weighted_rows(slopes, shared.first(turn), sums);
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

// Where a block of keys stands on its way over the queries that see them, head after head.
struct Walk {
  int head;
  int end_head;
  int query;
  int begin;  // of queries
  int end;

  __device__ __forceinline__ bool is_over() const { return head >= end_head; }
  __device__ __forceinline__ void advance() {
    query += kOther;
    if (query < end) return;
    query = begin;
    ++head;
  }
};

// Starts copying the queries that `at` stands at.
template <int kDim>
__device__ __forceinline__ void load_queries(const AttentionShape& shape, const Operands& from,
                                             const Shared<kDim>& shared, int turn, const Walk& at) {
  const Range queries({0, shape.queries});
  shared.first(turn).load(from.query + at.head * kDim, shape.query_stride, at.query, queries);
  shared.second(turn).load(from.grad_output + at.head * kDim, shape.output_stride, at.query, queries);
}

// Of the query that is this thread's of kOther; zeros past the last.
__device__ __forceinline__ Statistics load_statistics(const AttentionBackward& op, const float* delta, const Walk& at,
                                                      std::int64_t batch) {
  const int n = at.query + thread_index();
  if (thread_index() >= kOther || n >= op.shape.queries) return {};
  const std::int64_t place = statistics_at(op.shape, batch, n, at.head);
  return {op.log_sum_exp[place], delta[place]};
}

// own: keys and values; walks over the queries that see them, of all heads that read them. Products have keys as rows
// and queries as columns.
template <int kDim>
__global__ void __launch_bounds__(kAttentionThreads, kDim == 64 ? 3 : 2)
    attention_grad_key_value(AttentionBackward op, const float* delta, std::int64_t tiles) {
  const AttentionShape& shape = op.shape;
  const Shared<kDim> shared{};
  const BlockOfHead block = block_of_keys(shape, tiles);
  const int first = block.tile * kOwn;
  const int warp_row = thread_index() / 32 * kWarpRows;
  const int group = group_of(shape);
  const Range readers(queries_of_keys(shape, first, smaller(shape.keys, first + kOwn)));
  if (readers.begin >= readers.end) return;
  const int begin = readers.begin / kOther * kOther;
  Walk walk{block.head * group, (block.head + 1) * group, begin, begin, readers.end};
  const Range visible(keys_of_queries(shape, 0, shape.queries));
  const Operands own(op, block.batch, 0, block.head);
  load_pairs(shared.own(0), shared.own(1), DenseRows<Bf16>{own.key, shape.key_stride}, own.value, first, visible);
  load_queries(shape, own, shared, 0, walk);
  copy_async_commit();
  Statistics statistics = load_statistics(op, delta, walk, block.batch);

  const WarpSight sight = sight_of_rows([&](int row) {
    const std::int64_t j = first + warp_row + row;
    return queries_of_keys(shape, j, j + 1);
  });
  Accumulator<kDim / 8> grad_key;
  Accumulator<kDim / 8> grad_value;
  grad_key.clear();
  grad_value.clear();
  for (int turn = 0; !walk.is_over(); turn ^= 1) {
    const int n = walk.query;
    walk.advance();
    if (thread_index() < kOther) {
      shared.statistics(turn)[thread_index()] = statistics.in_base_2();
    }
    copy_async_wait<0>();
    block_barrier();  // these queries are there, and all have done with those before, where the next are put
    if (!walk.is_over()) {
      load_queries(shape, own, shared, turn ^ 1, walk);
      statistics = load_statistics(op, delta, walk, block.batch);
    }
    copy_async_commit();
    Scores weights;
    Scores slopes;
    weights.clear();
    slopes.clear();
    add_row_products(shared.own(0), warp_row, shared.first(turn), weights);
    add_row_products(shared.own(1), warp_row, shared.second(turn), slopes);
    weigh(weights, slopes, shape.scale, sight, n,
          [&](int p, int e) { return shared.statistics(turn)[Scores::column(p, e)]; });
    add_weighted_rows(weights, shared.second(turn), grad_value);
    add_weighted_rows(slopes, shared.first(turn), grad_key);
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
