#include "kernels/cuda/attention_splits.h"

#include "kernels/error.h"

namespace kvloom::cuda {
namespace {

constexpr int kSplits = static_cast<int>(kLargestSplits);
constexpr int kTeams = 8;  // of a block: each has every eighth split, and each thread of it four elements of them
constexpr int kTeamSplits = kSplits / kTeams;

template <int kDim>
constexpr int kTeam = kDim / 4;
template <int kDim>
constexpr int kBlock = kTeams* kTeam<kDim>;

// A block has a head of a sequence. All that it reads is asked for before its first barrier, since it does little but
// wait for that; then the teams weigh what they have, and are added up in their order.
template <typename T, int kDim>
__global__ void __launch_bounds__(kBlock<kDim>) attention_join(AttentionForward op, Partials partials) {
  __shared__ float largest[kSplits];
  __shared__ float total[kSplits];
  __shared__ float team_total[kTeams];
  __shared__ float team_sums[kTeams][kDim];
  static_assert(kBlock<kDim> >= kSplits && kSplits == 2 * kWarp);
  const auto block = static_cast<std::uint32_t>(block_index());
  const auto heads = static_cast<std::uint32_t>(op.shape.heads);
  const std::int64_t batch = block / heads;
  const std::int64_t first = block_index() * partials.splits;
  const int used = static_cast<int>(used_splits(keys_of_query(shape_of(op, batch), 0), partials.splits));
  const int thread = thread_index();
  const int team = thread / kTeam<kDim>;
  const int d = thread % kTeam<kDim> * 4;

  Floats<4> parts[kTeamSplits] = {};
#pragma unroll
  for (int i = 0; i < kTeamSplits; ++i) {
    const int s = team + i * kTeams;
    if (s < used) parts[i] = load_floats<4>(partials.sums + (first + s) * kDim + d);
  }
  if (thread < kSplits) {
    const float own_largest = thread < used ? partials.largest[first + thread] : kNothing;
    const float own_total = thread < used ? partials.total[first + thread] : 0.0f;
    largest[thread] = own_largest;
    total[thread] = own_total;
  }
  block_barrier();

  RunningSoftmax softmax;
  softmax.largest = combine_of_warp(fmaxf(largest[thread % kWarp], largest[thread % kWarp + kWarp]),
                                    [](float a, float b) { return fmaxf(a, b); });
  Floats<4> sum{};
  float of_team = 0;
#pragma unroll
  for (int i = 0; i < kTeamSplits; ++i) {
    const int s = team + i * kTeams;
    const float weight = softmax.weight(largest[s]);
    of_team += weight * total[s];
#pragma unroll
    for (int e = 0; e < 4; ++e) sum.value[e] += weight * parts[i].value[e];
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) team_sums[team][d + e] = sum.value[e];
  if (d == 0) team_total[team] = of_team;
  block_barrier();

  if (thread >= kDim) return;
  Floats<1> answered{};
#pragma unroll
  for (int t = 0; t < kTeams; ++t) {
    softmax.total += team_total[t];
    answered.value[0] += team_sums[t][thread];
  }
  answer<T>(op, batch, block % heads, thread, softmax, answered);
}

template <int kDim>
void start(const AttentionForward& op, const Partials& partials, Queue& queue) {
  with_compute_type(op.shape.dtype, "attention", [&]<typename T>() {
    launch("attention_join", attention_join<T, kDim>,
           {.blocks = op.shape.batch * op.shape.heads, .threads = kBlock<kDim>}, queue, op, partials);
  });
}

}  // namespace

void join_splits(const AttentionForward& op, const Partials& partials, Queue& queue) {
  switch (op.shape.head_dim) {
    case 32:
      return start<32>(op, partials, queue);
    case 64:
      return start<64>(op, partials, queue);
    case 128:
      return start<128>(op, partials, queue);
    case 256:
      return start<256>(op, partials, queue);
    default:
      fail("attention: joins splits of head_dim 32, 64, 128 or 256, not {}", op.shape.head_dim);
  }
}

}  // namespace kvloom::cuda
