// Attention forward on tensor cores, Dao 2023, "FlashAttention-2" (arXiv 2307.08691), algorithm 1: a block has 64
// queries of a head and walks over their keys, 64 at a time, of which the next come in while these are worked on.
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/attention_ways.h"
#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kQueries = kAttentionWarps * kWarpRows;
constexpr int kKeys = 64;

// Blocks that a multiprocessor of an H100 holds.
template <int kDim>
constexpr int kResident = kDim == 64 ? 4 : 2;

template <int kDim>
struct Shared {
  using Queries = Tile<kQueries, kDim>;
  using Keys = Tile<kKeys, kDim>;
  static constexpr std::size_t kBytes = Queries::kBytes + 4 * Keys::kBytes;

  Bf16* data = dynamic_shared<Bf16>();

  __device__ Queries query() const { return {data}; }
  // By turn: one is worked on while the other is filled.
  __device__ Keys key(int turn) const { return {data + Queries::kElements + 2 * turn * Keys::kElements}; }
  __device__ Keys value(int turn) const { return {key(turn).data + Keys::kElements}; }
};

using Scores = Accumulator<kKeys / 8>;

template <int kDim, typename KeyLayout>
__global__ void __launch_bounds__(kAttentionThreads, kResident<kDim>)
    attention_forward(AttentionForward op, KeyLayout layout, std::int64_t tiles) {
  const Shared<kDim> shared{};
  const BlockOfHead block = block_of_queries(op.shape, tiles);
  const AttentionShape shape = shape_of(op, block.batch);
  const int first = block.tile * kQueries;
  const int kv_head = block.head / group_of(shape);
  const auto keys = layout.template rows<Bf16>(op, op.key, block.batch, kv_head);
  const Bf16* values = layout.template rows<Bf16>(op, op.value, block.batch, kv_head).base;
  const int warp_row = thread_index() / 32 * kWarpRows;
  const Range visible(keys_of_queries(shape, first, first + kQueries));
  const int begin = visible.begin / kKeys * kKeys;

  shared.query().load(static_cast<const Bf16*>(op.query) + query_row(shape, block.batch, 0) + block.head * kDim,
                      shape.query_stride, first, Range({0, shape.queries}));
  if (visible.begin < visible.end) {
    load_pairs(shared.key(0), shared.value(0), keys, values, begin, visible);
  }
  copy_async_commit();

  const WarpSight sight = sight_of_rows([&](int row) { return keys_of_query(shape, first + warp_row + row); });
  const float scale = shape.scale * kLog2E;
  RunningSoftmax softmax[2];
  Accumulator<kDim / 8> sums;
  sums.clear();
  int turn = 0;
  for (int k = begin; k < visible.end; k += kKeys, turn ^= 1) {
    copy_async_wait<0>();
    block_barrier();  // this tile is there, and all have done with the one before, where the next is put
    if (k + kKeys < visible.end) {
      load_pairs(shared.key(turn ^ 1), shared.value(turn ^ 1), keys, values, k + kKeys, visible);
    }
    copy_async_commit();
    Scores scores;
    scores.clear();
    add_row_products(shared.query(), warp_row, shared.key(turn), scores);
    sight.mask(scores, k);
    take_in(scores, scale, softmax, sums);
    add_weighted_rows(scores, shared.value(turn), sums);
  }
  copy_async_wait<0>();

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    softmax[i].total += shuffle_xor(softmax[i].total, 1);
    softmax[i].total += shuffle_xor(softmax[i].total, 2);
    const std::int64_t n = first + warp_row + Scores::row(2 * i);
    if (n >= shape.queries) continue;
    const float share = softmax[i].inverse_total();
    Bf16* output = static_cast<Bf16*>(op.output) + output_row(shape, block.batch, n) + block.head * kDim;
#pragma unroll
    for (int p = 0; p < kDim / 8; ++p) {
      *reinterpret_cast<std::uint32_t*>(output + Accumulator<kDim / 8>::column(p, 0)) =
          pack_bf16(sums.piece[p][2 * i] * share, sums.piece[p][2 * i + 1] * share);
    }
    if (op.log_sum_exp != nullptr && thread_index() % 4 == 0) {
      op.log_sum_exp[statistics_at(shape, block.batch, n, block.head)] = softmax[i].log_sum_exp();
    }
  }
}

template <int kDim>
void start(const AttentionForward& op, Queue& queue) {
  const std::int64_t tiles = ceil_div(op.shape.queries, kQueries);
  with_key_layout(op, [&]<typename KeyLayout>(KeyLayout layout) {
    launch("attention_forward", attention_forward<kDim, KeyLayout>,
           {.blocks = op.shape.batch * op.shape.heads * tiles,
            .threads = kAttentionThreads,
            .shared_bytes = Shared<kDim>::kBytes},
           queue, op, layout, tiles);
  });
}

}  // namespace

bool can_use_tensor_cores(const AttentionForward& op) {
  const AttentionShape& shape = op.shape;
  return shape.dtype == DType::kBF16 && (shape.head_dim == 64 || shape.head_dim == 128) &&
         are_multiples({shape.query_stride, shape.output_stride, shape.key_stride, shape.key_batch_stride}, 8) &&
         are_aligned({op.query, op.key, op.value, op.output});
}

void run_tensor_cores(const AttentionForward& op, Queue& queue) {
  if (op.shape.head_dim == 64) return start<64>(op, queue);
  start<128>(op, queue);
}

}  // namespace kvloom::cuda
