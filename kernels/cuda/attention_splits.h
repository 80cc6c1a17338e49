// One query a sequence over many keys: the keys are split over blocks, and what these leave is joined by its softmax.
// For .cu files.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda/attention_span.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/queue.h"

namespace kvloom::cuda {

inline constexpr std::int64_t kLeastKeys = 64;  // of a split: fewer are not worth another block
inline constexpr std::int64_t kLargestSplits = 64;

// What a split leaves of a head, [batch, heads, splits]: its softmax, and its weighted sum of values [head_dim]. All
// null where there is one split: that gives the answer itself.
struct Partials {
  std::int64_t splits;
  float* largest;
  float* total;
  float* sums;
};

// How many of the splits a sequence uses: as many as its keys are worth, however many keys there might have been. The
// rest leave nothing and are not joined.
__device__ __forceinline__ std::int64_t used_splits(Span visible, std::int64_t splits) {
  return larger(1, smaller(splits, (visible.end - visible.begin) / kLeastKeys));
}

// What a block works on: which of a sequence's blocks of heads, and which keys.
struct Share {
  std::int64_t batch;
  std::uint32_t head_block;
  std::int64_t split;
  bool is_used;
  Span keys;
};

// Divides in 32 bits, which is as far as grids and positions go: with 64 a division takes a hundred instructions.
__device__ __forceinline__ Share share_of(const AttentionForward& op, std::uint32_t head_blocks, std::int64_t splits) {
  const auto block = static_cast<std::uint32_t>(block_index());
  const std::uint32_t split = block % static_cast<std::uint32_t>(splits);
  const std::uint32_t rest = block / static_cast<std::uint32_t>(splits);
  const std::uint32_t batch = rest / head_blocks;
  const Span visible = keys_of_query(shape_of(op, batch), 0);
  const auto keys = static_cast<std::uint32_t>(larger(0, visible.end - visible.begin));
  const auto used = static_cast<std::uint32_t>(used_splits(visible, splits));
  // The first few splits have one key more where there is a remainder.
  const std::uint32_t each = keys / used;
  const std::uint32_t more = keys % used;
  const std::int64_t begin = visible.begin + std::int64_t{split} * each + smaller(split, more);
  return {.batch = batch,
          .head_block = rest % head_blocks,
          .split = split,
          .is_used = split < used,
          .keys = {begin, begin + each + (split < more ? 1 : 0)}};
}

// N elements of a head's answer from d on, and with the first its log_sum_exp.
template <typename T, int N>
__device__ __forceinline__ void answer(const AttentionForward& op, std::int64_t batch, std::int64_t head,
                                       std::int64_t d, const RunningSoftmax& softmax, const Floats<N>& sum) {
  const AttentionShape& shape = op.shape;
  T* output = static_cast<T*>(op.output) + output_row(shape, batch, 0) + head * shape.head_dim;
  const float share = softmax.inverse_total();
  Pack<T, N> result;
#pragma unroll
  for (int e = 0; e < N; ++e) result.value[e] = from_float<T>(sum.value[e] * share);
  store_pack(output + d, result);
  if (d == 0 && op.log_sum_exp != nullptr) {
    op.log_sum_exp[statistics_at(shape, batch, 0, head)] = softmax.log_sum_exp();
  }
}

// The same of what a block has seen.
template <typename T, int N>
__device__ __forceinline__ void leave(const AttentionForward& op, const Partials& partials, const Share& share,
                                      std::int64_t head, std::int64_t d, const RunningSoftmax& softmax,
                                      const Floats<N>& sum) {
  if (partials.splits == 1) return answer<T>(op, share.batch, head, d, softmax, sum);
  const std::int64_t place = (share.batch * op.shape.heads + head) * partials.splits + share.split;
  store_floats(partials.sums + place * op.shape.head_dim + d, sum);
  if (d != 0) return;
  partials.largest[place] = softmax.largest;
  partials.total[place] = softmax.total;
}

// `wanted`, as far as there may be keys for so many: what a sequence uses of them does not depend on shape.keys.
inline std::int64_t splits_of(const AttentionShape& shape, std::int64_t wanted) {
  const std::int64_t keys = shape.window > 0 ? std::min(shape.window, shape.keys) : shape.keys;
  return std::clamp<std::int64_t>(wanted, 1, std::clamp<std::int64_t>(keys / kLeastKeys, 1, kLargestSplits));
}

// output =, log_sum_exp =, of what all splits have left.
void join_splits(const AttentionForward& op, const Partials& partials, Queue& queue);

// Calls start(partials), which launches the kernel that fills them, and joins them.
template <typename Start>
void run_splits(const AttentionForward& op, std::int64_t splits, Queue& queue, Start&& start) {
  if (splits == 1) return start(Partials{.splits = 1, .largest = nullptr, .total = nullptr, .sums = nullptr});
  const std::int64_t parts = op.shape.batch * op.shape.heads * splits;
  const Scratch<float> scratch(queue, parts * (op.shape.head_dim + 2));
  const Partials partials{.splits = splits,
                          .largest = scratch.data() + parts * op.shape.head_dim,
                          .total = scratch.data() + parts * (op.shape.head_dim + 1),
                          .sums = scratch.data()};
  start(partials);
  join_splits(op, partials, queue);
}

}  // namespace kvloom::cuda
