// Attention of one query a sequence over many keys: as fast as keys and values can be read. The heads that share a KV
// head read each key once; keys are split over blocks, whose results are joined by their log-sum-exps.
#include <algorithm>

#include "kernels/cuda/attention_span.h"
#include "kernels/cuda/attention_ways.h"
#include "kernels/cuda/packs.h"

namespace kvloom::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kBlock = kWarps * kWarp;
constexpr int kAtOnce = 4;                // keys of a team that are on their way together
constexpr std::int64_t kLeastKeys = 128;  // of a split: fewer are not worth another block
constexpr int kLargestSplits = 64;
constexpr std::int64_t kBlocksOfProcessor = 4;  // how many blocks a multiprocessor is to have

// What a split leaves of a head, [batch, heads, splits]: its softmax, and its weighted sum of values [head_dim].
struct Partial {
  float* largest;
  float* total;
  float* sums;
};

// How many of the splits a sequence uses: as many as its keys are worth, however many keys there might have been. The
// rest leave nothing and are not joined.
__device__ __forceinline__ std::int64_t used_splits(Span visible, std::int64_t splits) {
  return larger(1, smaller(splits, (visible.end - visible.begin) / kLeastKeys));
}

// The query's head a block works on first, of which sequence, and which keys.
struct Share {
  std::int64_t batch;
  std::int64_t head;
  std::int64_t split;
  bool is_used;
  std::int64_t begin;
  std::int64_t end;
};

template <int kHeads>
__device__ Share share_of(const AttentionForward& op, std::int64_t splits) {
  const std::int64_t head_blocks = op.shape.heads / kHeads;
  const std::int64_t split = block_index() % splits;
  const std::int64_t rest = block_index() / splits;
  const std::int64_t batch = rest / head_blocks;
  const Span visible = keys_of_query(shape_of(op, batch), 0);
  const std::int64_t keys = larger(0, visible.end - visible.begin);
  const std::int64_t used = used_splits(visible, splits);
  return {.batch = batch,
          .head = rest % head_blocks * kHeads,
          .split = split,
          .is_used = split < used,
          .begin = visible.begin + keys * split / used,
          .end = visible.begin + keys * (split + 1) / used};
}

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
template <typename T, int kTeam, int kHeads>
__global__ void __launch_bounds__(kBlock) attention_decode(AttentionForward op, Partial partial, std::int64_t splits) {
  constexpr int kPack = kPackOf<T>;
  constexpr int kTeams = kBlock / kTeam;
  constexpr int kDim = kTeam * kPack;
  const AttentionShape& shape = op.shape;
  const Share share = share_of<kHeads>(op, splits);
  if (!share.is_used) return;
  const int team = thread_index() / kTeam;
  const int d = thread_index() % kTeam * kPack;
  const std::int64_t kv_at =
      share.batch * shape.key_batch_stride + share.head / (shape.heads / shape.kv_heads) * kDim + d;
  const T* keys = static_cast<const T*>(op.key) + kv_at;
  const T* values = static_cast<const T*>(op.value) + kv_at;

  float query[kHeads][kPack];
  const T* query_at = static_cast<const T*>(op.query) + query_row(shape, share.batch, 0) + share.head * kDim + d;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const Pack<T, kPack> pack = load_pack<kPack>(query_at + h * kDim);
#pragma unroll
    for (int e = 0; e < kPack; ++e) query[h][e] = to_float(pack.value[e]) * shape.scale * kLog2E;
  }
  Head<kPack> heads[kHeads];
  for (std::int64_t first = share.begin; first < share.end; first += kTeams * kAtOnce) {
    Pack<T, kPack> key[kAtOnce];
    Pack<T, kPack> value[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const std::int64_t j = smaller(first + i * kTeams + team, share.end - 1);
      key[i] = load_pack<kPack>(keys + j * shape.key_stride);
      value[i] = load_pack<kPack>(values + j * shape.key_stride);
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
        scores[i] = first + i * kTeams + team < share.end ? sum : kNothing;
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
    warp_largest[warp][h] = heads[h].softmax.largest;
    warp_total[warp][h] = heads[h].softmax.total;
#pragma unroll
    for (int e = 0; e < kPack; ++e) warp_sums[warp][h][d + e] = heads[h].sums[e];
  }
  block_barrier();
  for (int i = thread_index(); i < kHeads * kDim; i += kBlock) {
    const int h = i / kDim;
    RunningSoftmax softmax;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) softmax.largest = fmaxf(softmax.largest, warp_largest[w][h]);
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = softmax.weight(warp_largest[w][h]);
      softmax.total += factor * warp_total[w][h];
      sum += factor * warp_sums[w][h][i % kDim];
    }
    const std::int64_t place = ((share.batch * shape.heads + share.head + h) * splits) + share.split;
    partial.sums[place * kDim + i % kDim] = sum;
    if (i % kDim != 0) continue;
    partial.largest[place] = softmax.largest;
    partial.total[place] = softmax.total;
  }
}

// A block has a head of a sequence and joins its splits.
template <typename T>
__global__ void __launch_bounds__(kBlock) attention_join(AttentionForward op, Partial partial, std::int64_t splits) {
  const AttentionShape& shape = op.shape;
  const std::int64_t b = block_index() / shape.heads;
  const std::int64_t h = block_index() % shape.heads;
  const float* largest = partial.largest + block_index() * splits;
  const float* total = partial.total + block_index() * splits;
  const float* sums = partial.sums + block_index() * splits * shape.head_dim;
  const std::int64_t used = used_splits(keys_of_query(shape_of(op, b), 0), splits);
  RunningSoftmax softmax;
  for (std::int64_t s = 0; s < used; ++s) softmax.largest = fmaxf(softmax.largest, largest[s]);
  for (std::int64_t s = 0; s < used; ++s) softmax.total += softmax.weight(largest[s]) * total[s];
  T* output = static_cast<T*>(op.output) + output_row(shape, b, 0) + h * shape.head_dim;
  for (std::int64_t d = thread_index(); d < shape.head_dim; d += kBlock) {
    float sum = 0;
    for (std::int64_t s = 0; s < used; ++s) sum += softmax.weight(largest[s]) * sums[s * shape.head_dim + d];
    output[d] = from_float<T>(sum * softmax.inverse_total());
  }
  if (op.log_sum_exp != nullptr && thread_index() == 0) {
    op.log_sum_exp[statistics_at(shape, b, 0, h)] = softmax.log_sum_exp();
  }
}

template <typename T, int kTeam, int kHeads>
void start(const AttentionForward& op, Queue& queue) {
  const AttentionShape& shape = op.shape;
  const std::int64_t blocks = shape.batch * shape.heads / kHeads;
  const std::int64_t wanted = ceil_div(kBlocksOfProcessor * queue.multiprocessors(), blocks);
  const std::int64_t keys = shape.window > 0 ? std::min(shape.window, shape.keys) : shape.keys;
  const std::int64_t most = std::clamp<std::int64_t>(keys / kLeastKeys, 1, kLargestSplits);
  const std::int64_t splits = std::clamp<std::int64_t>(wanted, 1, most);
  const std::int64_t parts = shape.batch * shape.heads * splits;
  const Scratch<float> scratch(queue, parts * (shape.head_dim + 2));
  const Partial partial{scratch.data() + parts * shape.head_dim, scratch.data() + parts * (shape.head_dim + 1),
                        scratch.data()};
  launch("attention_decode", attention_decode<T, kTeam, kHeads>, {.blocks = blocks * splits, .threads = kBlock}, queue,
         op, partial, splits);
  launch("attention_join", attention_join<T>, {.blocks = shape.batch * shape.heads, .threads = kBlock}, queue, op,
         partial, splits);
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
         are_multiples({shape.query_stride, shape.key_stride, shape.key_batch_stride}, pack) &&
         are_aligned({op.query, op.key, op.value});
}

void run_decode(const AttentionForward& op, Queue& queue) {
  with_compute_type(op.shape.dtype, "attention", [&]<typename T>() {
    const std::int64_t team = op.shape.head_dim / kPackOf<T>;
    if (team == 8) return start_with_heads<T, 8>(op, queue);
    if (team == 16) return start_with_heads<T, 16>(op, queue);
    start_with_heads<T, 32>(op, queue);
  });
}

}  // namespace kvloom::cuda
