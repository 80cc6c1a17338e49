// A block has a row.
#include "kernels/sample.h"

#include "kernels/cuda/sample_limit.h"
#include "kernels/random.h"

namespace kvloom::cuda {
namespace {

constexpr std::uint64_t kSampler = stream_id("sampler");

// Order of the bits is the order of the values, and no value is both +0 and -0.
__device__ std::uint32_t ordered_bits(float value) {
  const auto bits = bits_of(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ float score_of(const SampleTokens& op, std::int64_t at, float logit, float penalty) {
  if (penalty == 1.0f || op.seen[at] == 0) return logit;
  return logit > 0 ? logit / penalty : logit * penalty;
}
__device__ float score_of(const SampleTokens& op, std::int64_t at, float penalty) {
  return score_of(op, at, op.logits[at], penalty);
}

// What a row's logits are, looked at once.
struct Survey {
  std::int64_t first_broken;  // the vocabulary's size: none
  bool any_finite;
  std::int64_t best;  // the token of the largest score, the lowest id among equals
};

template <int N>
__device__ Survey survey(const SampleTokens& op, std::int64_t row, float penalty) {
  std::int64_t intact = 0;  // vocab - first_broken, so that the largest is wanted
  std::int64_t finite = 0;
  std::uint64_t best = 0;  // score, then the lower id
#pragma unroll 2
  for (std::int64_t first = thread_index() * N; first < op.vocab; first += kSampleBlock * N) {
    const Pack<float, N> logits = load_pack<N>(op.logits + row * op.vocab + first);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const std::int64_t i = first + e;
      const float logit = logits.value[e];
      if (logit != logit || logit == INFINITY) {
        intact = Largest{}(intact, op.vocab - i);
        continue;
      }
      if (logit != -INFINITY) finite = 1;
      const float score = score_of(op, row * op.vocab + i, logit, penalty);
      best = Largest{}(
          best, static_cast<std::uint64_t>(ordered_bits(score)) << 32 | (0xffffffffu - static_cast<std::uint32_t>(i)));
    }
  }
  intact = combine_of_group<kSampleBlock>(intact, Largest{});
  finite = combine_of_group<kSampleBlock>(finite, Largest{});
  best = combine_of_group<kSampleBlock>(best, Largest{});
  return {op.vocab - intact, finite != 0,
          static_cast<std::int64_t>(0xffffffffu - static_cast<std::uint32_t>(best & 0xffffffffu))};
}

__device__ Candidates list_candidates(const SampleTokens& op, std::int64_t row, const SampleRow& choice, double largest,
                                      double* weights, std::int32_t* tokens) {
  const Ids ids = ids_of_warp(op.vocab, warp_index());
  Candidates list{weights + ids.begin, tokens + ids.begin, 0, 0, 1.0};
  for (std::int64_t first = ids.begin; first < ids.end; first += kAhead * kWarp) {
    float scores[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const std::int64_t i = first + a * kWarp + lane_index();
      scores[a] = i < ids.end ? score_of(op, row * op.vocab + i, choice.repetition_penalty) : -INFINITY;
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const double weight = exp((scores[a] - largest) / static_cast<double>(choice.temperature));
      const bool is_kept = weight > 0 && weight >= static_cast<double>(choice.min_p);
      const int place = append(is_kept, list.own);
      if (!is_kept) continue;
      list.weights[place] = weight;
      list.tokens[place] = static_cast<std::int32_t>(first + a * kWarp + lane_index());
      list.least = Smallest{}(list.least, weight);
    }
  }
  list.all = sums_over_warps(list.own).all;
  list.least = combine_of_group<kSampleBlock>(list.least, Smallest{});
  return list;
}

// The list in which the sum of the weights, in the order of ids, passes `wanted`; all threads get the same.
struct Passed {
  int warp;  // kSampleWarps: rounding lets none of them pass
  int count;
  double before;
};
__device__ Passed list_that_passes(double own_total, int own_count, double wanted) {
  __shared__ double totals[kSampleWarps];
  __shared__ int counts[kSampleWarps];
  if (lane_index() == 0) {
    totals[warp_index()] = own_total;
    counts[warp_index()] = own_count;
  }
  block_barrier();
  Passed passed{0, 0, 0};
  for (; passed.warp < kSampleWarps; ++passed.warp) {
    if (wanted < passed.before + totals[passed.warp]) {
      passed.count = counts[passed.warp];
      break;
    }
    passed.before += totals[passed.warp];
  }
  return passed;
}

// Goes through the weights in the order of ids until their sum passes uniform * total. `chosen` is shared, and holds
// what is to be taken should rounding let nobody find it. `weights` and `tokens` are the row's.
__device__ void draw(const Candidates& list, std::int64_t vocab, const double* weights, const std::int32_t* tokens,
                     double uniform, std::int32_t& chosen) {
  __shared__ double values[kSampleBlock];
  const double own_total = total_of_warp(list);
  const double wanted = uniform * sums_over_warps(own_total).all;
  const Passed passed = list_that_passes(own_total, list.own, wanted);
  if (passed.warp == kSampleWarps) return;
  const std::int64_t start = ids_of_warp(vocab, passed.warp).begin;
  // All threads share that list.
  const int begin = static_cast<int>(static_cast<std::int64_t>(passed.count) * thread_index() / kSampleBlock);
  const int end = static_cast<int>(static_cast<std::int64_t>(passed.count) * (thread_index() + 1) / kSampleBlock);
  double own = 0;
  for (int i = begin; i < end; ++i) own += weights[start + i];
  values[thread_index()] = own;
  if (thread_index() == 0) chosen = tokens[start + passed.count - 1];
  block_barrier();
  double reached = passed.before;
  for (int t = 0; t < thread_index(); ++t) reached += values[t];
  if (wanted < reached || !(wanted < reached + own)) return;
  for (int i = begin; i < end; ++i) {
    reached += weights[start + i];
    if (wanted < reached || i == end - 1) {
      chosen = tokens[start + i];
      return;
    }
  }
}

template <int N>
__global__ void __launch_bounds__(kSampleBlock)
    sample_tokens(SampleTokens op, double* all_weights, std::int32_t* all_tokens) {
  __shared__ std::int32_t chosen;
  const Columns columns{dynamic_shared<double>(),
                        reinterpret_cast<int*>(dynamic_shared<double>() + kDigits * kSampleBlock)};
  const std::int64_t row = block_index();
  const SampleRow choice = op.choices[row];
  const Survey found = survey<N>(op, row, choice.repetition_penalty);
  if (found.first_broken < op.vocab || !found.any_finite) {
    if (thread_index() == 0) op.tokens[row] = static_cast<std::int32_t>(-1 - found.first_broken);
    return;
  }
  if (thread_index() == 0) chosen = static_cast<std::int32_t>(found.best);
  if (choice.temperature > 0) {
    double* weights = all_weights + row * op.vocab;
    std::int32_t* tokens = all_tokens + row * op.vocab;
    const double largest = score_of(op, row * op.vocab + found.best, choice.repetition_penalty);
    Candidates list = list_candidates(op, row, choice, largest, weights, tokens);
    if (choice.top_k > 0 && choice.top_k < list.all) {
      drop_beyond(list, limit_of(list, static_cast<double>(choice.top_k), Measure::kCount, columns));
    }
    if (choice.top_p < 1) {
      const double wanted = static_cast<double>(choice.top_p) * sums_over_warps(total_of_warp(list)).all;
      drop_beyond(list, limit_of(list, wanted, Measure::kWeight, columns));
    }
    draw(list, op.vocab, weights, tokens, uniform(choice.seed, kSampler, choice.position), chosen);
  }
  block_barrier();
  if (thread_index() != 0) return;
  op.tokens[row] = chosen;
  op.seen[row * op.vocab + chosen] = 1;
  op.choices[row].position = choice.position + 1;
}

}  // namespace

void run(const SampleTokens& op, Queue& queue) {
  if (op.rows == 0) return;
  const Scratch<double> weights(queue, op.rows * op.vocab);
  const Scratch<std::int32_t> tokens(queue, op.rows * op.vocab);
  const auto start = [&](auto* kernel) {
    launch("sample_tokens", kernel, {.blocks = op.rows, .threads = kSampleBlock, .shared_bytes = kColumnsBytes}, queue,
           op, weights.data(), tokens.data());
  };
  if (op.vocab % kPackOf<float> == 0 && is_aligned(op.logits)) return start(sample_tokens<kPackOf<float>>);
  start(sample_tokens<1>);
}

}  // namespace kvloom::cuda
