// Attention of one query a sequence over many keys, bf16, on tensor cores: the heads that share a KV head are the 16
// rows of the products, so that a key costs the same whether one head or sixteen read it.
#include "kernels/cuda/attention_splits.h"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/attention_ways.h"
#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kKeys = kAttentionWarps * kWarpRows;  // of a tile
constexpr int kStages = 3;                          // tiles: one is worked on, two are on their way

// Blocks that a multiprocessor of an H100 holds.
template <int kDim>
constexpr int kResident = kDim == 64 ? 4 : 2;

template <int kDim>
struct Shared {
  using Keys = Tile<kKeys, kDim>;
  static constexpr std::size_t kBytes = 2 * kStages * Keys::kBytes;
  static_assert(kResident<kDim> * (kBytes + 1024) <= 228 << 10, "CUDA keeps 1 KB of a block's for itself");

  Bf16* data = dynamic_shared<Bf16>();

  __device__ __forceinline__ Keys key(int stage) const { return {data + 2 * stage * Keys::kElements}; }
  __device__ __forceinline__ Keys value(int stage) const { return {key(stage).data + Keys::kElements}; }
  // Where the last stage is, until that is filled.
  __device__ __forceinline__ Tile<kWarpRows, kDim> query() const { return {key(kStages - 1).data}; }
};

// The heads of a KV head as equal shares of 16 rows at most.
struct HeadRows {
  std::uint32_t group;   // of a KV head
  std::uint32_t blocks;  // of the same
  std::uint32_t rows;    // of a block; the last may have fewer
  std::uint32_t blocks_of_sequence;
};

HeadRows head_rows_of(const AttentionShape& shape) {
  const std::int64_t group = shape.heads / shape.kv_heads;
  const std::int64_t blocks = ceil_div(group, kWarpRows);
  return {.group = static_cast<std::uint32_t>(group),
          .blocks = static_cast<std::uint32_t>(blocks),
          .rows = static_cast<std::uint32_t>(ceil_div(group, blocks)),
          .blocks_of_sequence = static_cast<std::uint32_t>(shape.kv_heads * blocks)};
}

// Brings tiles of `count` keys from `first` on, and their values.
template <int kDim, typename Rows>
struct TileCopies {
  Shared<kDim> shared;
  Rows keys;
  const Bf16* values;
  int first;
  int count;

  // Starts a group of copies, which is empty where there is no such tile. Rows past the last key become zeros.
  __device__ __forceinline__ void start(int tile, int stage) const {
    if (tile * kKeys < count) {
      load_pairs(shared.key(stage), shared.value(stage), keys, values, first + tile * kKeys,
                 Range({first, first + count}));
    }
    copy_async_commit();
  }
};

// Makes kNothing of the scores of columns from `count` on, which stand for no key.
__device__ __forceinline__ void mask(int count, Accumulator<2>& scores) {
  if (count >= kWarpRows) return;
#pragma unroll
  for (int p = 0; p < 2; ++p) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (Accumulator<2>::column(p, e) >= count) scores.piece[p][e] = kNothing;
    }
  }
}

// What the warps of a block leave of their 16 rows, in the memory of the tiles.
template <int kDim>
struct WarpSums {
  static constexpr int kRows = kAttentionWarps * kWarpRows;
  static constexpr int kStride = kDim + 8;
  static_assert((kRows * (kStride + 2) + kWarpRows * 2) * sizeof(float) <= Shared<kDim>::kBytes);

  float* sums = dynamic_shared<float>();    // [warps, 16, kDim], rows kStride apart
  float* largest = sums + kRows * kStride;  // [warps, 16]; once joined, what the warp counts for in the row
  float* total = largest + kRows;           // [warps, 16]
  float* row_largest = total + kRows;       // [16], of all warps
  float* row_total = row_largest + kWarpRows;

  __device__ __forceinline__ void put(RunningSoftmax (&softmax)[2], const Accumulator<kDim / 8>& own) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      softmax[i].total += shuffle_xor(softmax[i].total, 1);
      softmax[i].total += shuffle_xor(softmax[i].total, 2);
      const int row = thread_index() / kWarp * kWarpRows + Accumulator<kDim / 8>::row(2 * i);
#pragma unroll
      for (int p = 0; p < kDim / 8; ++p) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          sums[row * kStride + Accumulator<kDim / 8>::column(p, e)] = own.piece[p][2 * i + e];
        }
      }
      if (thread_index() % 4 != 0) continue;
      largest[row] = softmax[i].largest;
      total[row] = softmax[i].total;
    }
  }
  // Of one row, by one thread.
  __device__ __forceinline__ void join_softmaxes(int row) const {
    float before[kAttentionWarps];
    RunningSoftmax softmax;
#pragma unroll
    for (int w = 0; w < kAttentionWarps; ++w) {
      before[w] = largest[w * kWarpRows + row];
      softmax.largest = fmaxf(softmax.largest, before[w]);
    }
#pragma unroll
    for (int w = 0; w < kAttentionWarps; ++w) {
      const float weight = softmax.weight(before[w]);
      softmax.total += weight * total[w * kWarpRows + row];
      largest[w * kWarpRows + row] = weight;
    }
    row_largest[row] = softmax.largest;
    row_total[row] = softmax.total;
  }
  __device__ __forceinline__ RunningSoftmax softmax(int row) const { return {row_largest[row], row_total[row]}; }
  // Elements d to d + 3 of a row's weighted values.
  __device__ __forceinline__ Floats<4> sum(int row, int d) const {
    Floats<4> all{};
#pragma unroll
    for (int w = 0; w < kAttentionWarps; ++w) {
      const int r = w * kWarpRows + row;
      const auto part = *reinterpret_cast<const Pack<float, 4>*>(sums + r * kStride + d);
#pragma unroll
      for (int e = 0; e < 4; ++e) all.value[e] += largest[r] * part.value[e];
    }
    return all;
  }
};

template <int kDim, typename KeyLayout>
__global__ void __launch_bounds__(kAttentionThreads, kResident<kDim>)
    attention_decode_tensor(AttentionForward op, KeyLayout layout, Partials partials, HeadRows heads) {
  const AttentionShape& shape = op.shape;
  const Share share = share_of(op, heads.blocks_of_sequence, partials.splits);
  if (!share.is_used) return;
  const std::uint32_t kv_head = share.head_block / heads.blocks;
  const std::uint32_t first_of_group = share.head_block % heads.blocks * heads.rows;
  const std::int64_t first_head = std::int64_t{kv_head} * heads.group + first_of_group;
  const int rows = static_cast<int>(smaller(heads.rows, heads.group - first_of_group));
  const int count = static_cast<int>(share.keys.end - share.keys.begin);
  const int warp_row = thread_index() / kWarp * kWarpRows;

  const Shared<kDim> shared{};
  const auto keys = layout.template rows<Bf16>(op, op.key, share.batch, kv_head);
  const auto values = layout.template rows<Bf16>(op, op.value, share.batch, kv_head);
  const TileCopies<kDim, decltype(keys)> copies{shared, keys, values.base, static_cast<int>(share.keys.begin), count};
  shared.query().load(static_cast<const Bf16*>(op.query) + query_row(shape, share.batch, 0) + first_head * kDim, kDim,
                      0, Range({0, rows}));
  copy_async_commit();
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) copies.start(s, s);
  copy_async_wait<kStages - 1>();
  block_barrier();
  std::uint32_t query[kDim / 16][4];
#pragma unroll
  for (int c = 0; c < kDim / 16; ++c) shared.query().left(query[c], 0, 16 * c);

  RunningSoftmax softmax[2];
  Accumulator<kDim / 8> sums;
  sums.clear();
  const float scale = shape.scale * kLog2E;
  int stage = 0;
  for (int tile = 0; tile * kKeys < count; ++tile) {
    copy_async_wait<kStages - 2>();
    block_barrier();  // this tile is there, and all have done with what lay in the stage that is filled next
    copies.start(tile + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
    Accumulator<2> scores;
    scores.clear();
#pragma unroll
    for (int c = 0; c < kDim / 16; ++c) {
      std::uint32_t b[4];
      shared.key(stage).right_transposed(b, warp_row, 16 * c);
      multiply_add(scores.piece[0], query[c], b[0], b[1]);
      multiply_add(scores.piece[1], query[c], b[2], b[3]);
    }
    mask(count - tile * kKeys - warp_row, scores);
    take_in(scores, scale, softmax, sums);
    add_weighted_rows(scores, Tile<kWarpRows, kDim>{shared.value(stage).row(warp_row)}, sums);
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  copy_async_wait<0>();
  block_barrier();  // the tiles are free

  const WarpSums<kDim> warps{};
  warps.put(softmax, sums);
  block_barrier();
  if (thread_index() < kWarpRows) warps.join_softmaxes(thread_index());
  block_barrier();
  for (int i = thread_index() * 4; i < rows * kDim; i += kAttentionThreads * 4) {
    const int row = i / kDim;
    const int d = i % kDim;
    leave<Bf16>(op, partials, share, first_head + row, d, warps.softmax(row), warps.sum(row, d));
  }
}

template <int kDim>
void start(const AttentionForward& op, Queue& queue) {
  const AttentionShape& shape = op.shape;
  const HeadRows heads = head_rows_of(shape);
  const std::int64_t blocks = shape.batch * heads.blocks_of_sequence;
  // As many splits as find a place at once. Where that would be two, the blocks of one have as many bytes on their way
  // as the memory takes, and nothing is to be joined.
  const std::int64_t fitting = kResident<kDim> * queue.multiprocessors() / blocks;
  const std::int64_t splits = splits_of(shape, fitting == 2 ? 1 : fitting);
  run_splits(op, splits, queue, [&](const Partials& partials) {
    with_key_layout(op, [&]<typename KeyLayout>(KeyLayout layout) {
      launch("attention_decode_tensor", attention_decode_tensor<kDim, KeyLayout>,
             {.blocks = blocks * splits, .threads = kAttentionThreads, .shared_bytes = Shared<kDim>::kBytes}, queue, op,
             layout, partials, heads);
    });
  });
}

}  // namespace

bool can_decode_by_tensor_cores(const AttentionForward& op) {
  const AttentionShape& shape = op.shape;
  return shape.dtype == DType::kBF16 && (shape.head_dim == 64 || shape.head_dim == 128) && can_decode(op);
}

void run_decode_by_tensor_cores(const AttentionForward& op, Queue& queue) {
  if (op.shape.head_dim == 64) return start<64>(op, queue);
  start<128>(op, queue);
}

}  // namespace kvloom::cuda
