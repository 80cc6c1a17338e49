// Attention of one query a sequence over many keys: as fast as keys and values can be read. The heads that share a KV
// head read each key once; keys are split over blocks, whose results are joined by their log-sum-exps.
#include <type_traits>

#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/attention_splits.h"
#include "kernels/cuda/attention_ways.h"
#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kBlock = kWarps * kWarp;
constexpr int kAtOnce = 4;  // keys of a team that are on their way together

// Blocks that a multiprocessor of an H100 holds, for each of whose threads there are as many elements of queries.
constexpr int resident_blocks(int elements) {
  if (elements <= 8) return 6;
  if (elements <= 16) return 4;
  return elements <= 32 ? 3 : 2;
}
template <typename T, int kHeads>
constexpr int kResident = resident_blocks(kHeads* kPackOf<T>);

// One head's softmax and weighted values, as far as a thread has seen them: kPack of head_dim.
template <int kPack>
struct Head {
  RunningSoftmax softmax;
  float sums[kPack] = {};

  __device__ __forceinline__ void raise(float score) {
    if (score <= softmax.largest) return;
    const float factor = softmax.raise(score);
#pragma unroll
    for (int e = 0; e < kPack; ++e) sums[e] *= factor;
  }
  template <typename T>
  __device__ __forceinline__ void add(float score, const Pack<T, kPack>& value) {
    const float weight = softmax.weight(score);
    softmax.total += weight;
#pragma unroll
    for (int e = 0; e < kPack; ++e) sums[e] += weight * to_float(value.value[e]);
  }
  // Adds what the lane at `mask` has seen; all lanes of the warp take part.
  __device__ __forceinline__ void join(int mask) {
    RunningSoftmax other;
    other.largest = shuffle_xor(softmax.largest, mask);
    other.total = shuffle_xor(softmax.total, mask);
    const float before = softmax.largest;
    const float largest = fmaxf(before, other.largest);
    const float own = before == kNothing ? 0.0f : exp2f(before - largest);
    const float factor = other.largest == kNothing ? 0.0f : exp2f(other.largest - largest);
    softmax.total = softmax.total * own + other.total * factor;
    softmax.largest = largest;
#pragma unroll
    for (int e = 0; e < kPack; ++e) sums[e] = sums[e] * own + shuffle_xor(sums[e], mask) * factor;
  }
};

// A team of kTeam lanes has a key at a time, each lane kPack elements of it; kHeads heads of one KV head.
template <typename T, int kTeam, int kHeads, typename KeyLayout>
__global__ void __launch_bounds__(kBlock, kResident<T, kHeads>)
    attention_decode(AttentionForward op, KeyLayout layout, Partials partials) {
  constexpr int kPack = kPackOf<T>;
  constexpr int kTeams = kBlock / kTeam;
  constexpr int kDim = kTeam * kPack;
  const AttentionShape& shape = op.shape;
  const Share share = share_of(op, static_cast<std::uint32_t>(shape.heads / kHeads), partials.splits);
  if (!share.is_used) return;
  const std::int64_t first_head = std::int64_t{share.head_block} * kHeads;
  const int team = thread_index() / kTeam;
  const int d = thread_index() % kTeam * kPack;
  const std::int64_t kv_head = first_head / (shape.heads / shape.kv_heads);
  const auto keys = layout.template rows<T>(op, op.key, share.batch, kv_head);
  const auto values = layout.template rows<T>(op, op.value, share.batch, kv_head);

  float query[kHeads][kPack];
  const T* query_at = static_cast<const T*>(op.query) + query_row(shape, share.batch, 0) + first_head * kDim + d;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const Pack<T, kPack> pack = load_pack<kPack>(query_at + h * kDim);
#pragma unroll
    for (int e = 0; e < kPack; ++e) query[h][e] = to_float(pack.value[e]) * shape.scale * kLog2E;
  }
  Head<kPack> heads[kHeads];
  for (std::int64_t first = share.keys.begin; first < share.keys.end; first += kTeams * kAtOnce) {
    Pack<T, kPack> key[kAtOnce];
    Pack<T, kPack> value[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const std::int64_t j = smaller(first + i * kTeams + team, share.keys.end - 1);
      key[i] = load_pack<kPack>(keys.at(j) + d);
      value[i] = load_pack<kPack>(values.at(j) + d);
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float scores[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        float sum = 0;
#pragma unroll
        for (int e = 0; e < kPack; ++e) sum += query[h][e] * to_float(key[i].value[e]);
#pragma unroll
        for (int mask = kTeam / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
        scores[i] = first + i * kTeams + team < share.keys.end ? sum : kNothing;
      }
      heads[h].raise(fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3])));
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) heads[h].add(scores[i], value[i]);
    }
  }

  // Teams of a warp, then warps, then splits.
  __shared__ float warp_largest[kWarps][kHeads];
  __shared__ float warp_total[kWarps][kHeads];
  __shared__ float warp_sums[kWarps][kHeads][kDim];
  const int warp = thread_index() / kWarp;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int mask = kTeam; mask < kWarp; mask *= 2) heads[h].join(mask);
    if (thread_index() % kWarp >= kTeam) continue;
    if (d == 0) {
      warp_largest[warp][h] = heads[h].softmax.largest;
      warp_total[warp][h] = heads[h].softmax.total;
    }
#pragma unroll
    for (int e = 0; e < kPack; ++e) warp_sums[warp][h][d + e] = heads[h].sums[e];
  }
  block_barrier();
  for (int i = thread_index(); i < kHeads * kDim; i += kBlock) {
    const int h = i / kDim;
    RunningSoftmax softmax;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) softmax.largest = fmaxf(softmax.largest, warp_largest[w][h]);
    Floats<1> sum{};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = softmax.weight(warp_largest[w][h]);
      softmax.total += factor * warp_total[w][h];
      sum.value[0] += factor * warp_sums[w][h][i % kDim];
    }
    leave<T>(op, partials, share, first_head + h, i % kDim, softmax, sum);
  }
}

template <typename T, int kTeam, int kHeads>
void start(const AttentionForward& op, Queue& queue) {
  const std::int64_t blocks = op.shape.batch * op.shape.heads / kHeads;
  const std::int64_t splits = splits_of(op.shape, kResident<T, kHeads> * queue.multiprocessors() / blocks);
  run_splits(op, splits, queue, [&](const Partials& partials) {
    with_key_layout(op, [&]<typename KeyLayout>(KeyLayout layout) {
      launch("attention_decode", attention_decode<T, kTeam, kHeads, KeyLayout>,
             {.blocks = blocks * splits, .threads = kBlock}, queue, op, layout, partials);
    });
  });
}

template <typename T, int kTeam>
void start_with_heads(const AttentionForward& op, Queue& queue) {
  const std::int64_t group = op.shape.heads / op.shape.kv_heads;
  if (group % 8 == 0) return start<T, kTeam, 8>(op, queue);
  if (group % 4 == 0) return start<T, kTeam, 4>(op, queue);
  if (group % 2 == 0) return start<T, kTeam, 2>(op, queue);
  start<T, kTeam, 1>(op, queue);
}

}  // namespace

bool can_decode(const AttentionForward& op) {
  const AttentionShape& shape = op.shape;
  if (shape.queries != 1 || (shape.dtype != DType::kF32 && shape.dtype != DType::kBF16)) return false;
  const std::int64_t pack = 16 / static_cast<std::int64_t>(size_of(shape.dtype));
  const std::int64_t team = shape.head_dim / pack;
  return shape.head_dim % pack == 0 && (team == 8 || team == 16 || team == 32) &&
         are_multiples({shape.query_stride, shape.output_stride, shape.key_stride, shape.key_batch_stride}, pack) &&
         are_aligned({op.query, op.key, op.value, op.output});
}

void run_decode(const AttentionForward& op, Queue& queue) {
  if (can_decode_by_tensor_cores(op)) return run_decode_by_tensor_cores(op, queue);
  with_compute_type(op.shape.dtype, "attention", [&]<typename T>() {
    const std::int64_t team = op.shape.head_dim / kPackOf<T>;
    if constexpr (std::is_same_v<T, float>) {  // tensor cores take those of bf16
      if (team == 8) return start_with_heads<T, 8>(op, queue);
      if (team == 16) return start_with_heads<T, 16>(op, queue);
    }
    start_with_heads<T, 32>(op, queue);
  });
}

}  // namespace kvloom::cuda
