// A block has a row. What a step leaves out has its weight set to 0; sums over a row have one order, fixed by its size.
#include "kernels/sample.h"

#include <bit>

#include "kernels/cuda/packs.h"
#include "kernels/random.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 512;
constexpr int kDigitBits = 4;
constexpr int kDigits = 1 << kDigitBits;  // as many as a block has warps: each warp adds up one
static_assert(kDigits == kBlock / kWarp);

struct Largest {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Order of the bits is the order of the values, and no value is both +0 and -0.
__device__ std::uint32_t ordered_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ float score_of(const SampleTokens& op, std::int64_t at, float penalty) {
  const float logit = op.logits[at];
  if (penalty == 1.0f || op.seen[at] == 0) return logit;
  return logit > 0 ? logit / penalty : logit * penalty;
}

// What a row's logits are, looked at once.
struct Survey {
  std::int64_t first_broken;  // the vocabulary's size: none
  bool any_finite;
  std::int64_t best;  // the token of the largest score, the lowest id among equals
};

__device__ Survey survey(const SampleTokens& op, std::int64_t row, float penalty) {
  std::int64_t intact = 0;  // vocab - first_broken, so that the largest is wanted
  std::int64_t finite = 0;
  std::uint64_t best = 0;  // score, then the lower id
  for (std::int64_t i = thread_index(); i < op.vocab; i += kBlock) {
    const float logit = op.logits[row * op.vocab + i];
    if (logit != logit || logit == INFINITY) {
      intact = Largest{}(intact, op.vocab - i);
      continue;
    }
    if (logit != -INFINITY) finite = 1;
    const std::uint64_t key = static_cast<std::uint64_t>(ordered_bits(score_of(op, row * op.vocab + i, penalty)))
                                  << 32 |
                              (0xffffffffu - static_cast<std::uint32_t>(i));
    best = Largest{}(best, key);
  }
  intact = combine_of_group<kBlock>(intact, Largest{});
  finite = combine_of_group<kBlock>(finite, Largest{});
  best = combine_of_group<kBlock>(best, Largest{});
  return {op.vocab - intact, finite != 0,
          static_cast<std::int64_t>(0xffffffffu - static_cast<std::uint32_t>(best & 0xffffffffu))};
}

// How much of a row there is, by a digit of its weights.
struct Digits {
  double measure[kDigits];
  double count[kDigits];
};

enum class Measure { kCount, kWeight };

__device__ double measure_of(Measure measure, double weight) { return measure == Measure::kCount ? 1.0 : weight; }

// The digit at `shift` of weights that are `prefix` above it. `columns` [2, kDigits, kBlock] is shared memory.
__device__ void count_digits(const double* weights, std::int64_t vocab, std::uint64_t prefix, int shift,
                             Measure measure, double* columns, Digits& digits) {
  const int thread = thread_index();
  double* own = columns + thread;
  for (int d = 0; d < 2 * kDigits; ++d) own[d * kBlock] = 0;
  for (std::int64_t i = thread; i < vocab; i += kBlock) {
    const double weight = weights[i];
    const auto bits = std::bit_cast<std::uint64_t>(weight);
    if (weight == 0 || (bits >> shift >> kDigitBits) != prefix) continue;
    const auto digit = static_cast<int>(bits >> shift & (kDigits - 1));
    own[digit * kBlock] += measure_of(measure, weight);
    own[(kDigits + digit) * kBlock] += 1;
  }
  block_barrier();
  const int digit = thread / kWarp;
  double sum = 0;
  double count = 0;
  for (int i = thread % kWarp; i < kBlock; i += kWarp) {
    sum += columns[digit * kBlock + i];
    count += columns[(kDigits + digit) * kBlock + i];
  }
  sum = combine_of_warp(sum, Plus{});
  count = combine_of_warp(count, Plus{});
  if (thread % kWarp == 0) {
    digits.measure[digit] = sum;
    digits.count[digit] = count;
  }
  block_barrier();
}

// Where the most probable tokens that reach `wanted` together end: at weights of at least `least`, of those equal to it
// only the `ties` of lowest id.
struct Limit {
  double least;
  std::int64_t ties;
};

__device__ Limit limit_of(const double* weights, std::int64_t vocab, double wanted, Measure measure, double* columns) {
  __shared__ Digits digits;
  std::uint64_t prefix = 0;
  double above = 0;  // the measure of weights beyond the prefix
  double count = 0;  // of those at the prefix
  for (int shift = 64 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    count_digits(weights, vocab, prefix, shift, measure, columns, digits);
    int chosen = kDigits;
    int lowest = 0;
    double reached = above;
    for (int d = kDigits - 1; d >= 0 && chosen == kDigits; --d) {
      if (digits.count[d] == 0) continue;
      lowest = d;
      if (reached + digits.measure[d] >= wanted) {
        chosen = d;
      } else {
        reached += digits.measure[d];
      }
    }
    // Rounded otherwise, the parts of what did reach it may not: then all of them are needed.
    if (chosen == kDigits) {
      chosen = lowest;
      reached -= digits.measure[lowest];
    }
    above = reached;
    count = digits.count[chosen];
    prefix = prefix << kDigitBits | static_cast<std::uint64_t>(chosen);
    block_barrier();  // all have read the digits
    if (count == 1) return {std::bit_cast<double>(prefix << shift), 1};
  }
  const auto least = std::bit_cast<double>(prefix);
  const double ties = ceil((wanted - above) / measure_of(measure, least));
  return {least, static_cast<std::int64_t>(ties < 1 ? 1 : ties > count ? count : ties)};
}

// Threads' shares in the order of ids.
struct Ids {
  std::int64_t begin;
  std::int64_t end;
};
__device__ Ids own_ids(std::int64_t vocab) {
  return {vocab * thread_index() / kBlock, vocab * (thread_index() + 1) / kBlock};
}

// The sum of `value` over the threads before this one, added up from the first on; of all in `total`.
__device__ double sum_before(double value, double& total) {
  __shared__ double values[kBlock];
  block_barrier();  // the values of the last call have been read
  values[thread_index()] = value;
  block_barrier();
  double before = 0;
  total = 0;
  for (int t = 0; t < kBlock; ++t) {
    if (t == thread_index()) before = total;
    total += values[t];
  }
  return before;
}

__device__ void drop_beyond(double* weights, std::int64_t vocab, const Limit& limit) {
  const Ids ids = own_ids(vocab);
  double ties = 0;
  for (std::int64_t i = ids.begin; i < ids.end; ++i) ties += weights[i] == limit.least ? 1 : 0;
  double all = 0;
  auto rank = static_cast<std::int64_t>(sum_before(ties, all));
  for (std::int64_t i = ids.begin; i < ids.end; ++i) {
    if (weights[i] < limit.least || (weights[i] == limit.least && rank++ >= limit.ties)) weights[i] = 0;
  }
  block_barrier();
}

__device__ double total_of(const double* weights, std::int64_t vocab) {
  double sum = 0;
  for (std::int64_t i = thread_index(); i < vocab; i += kBlock) sum += weights[i];
  return combine_of_group<kBlock>(sum, Plus{});
}

// Goes through the weights in the order of ids until their sum passes uniform * total. `chosen` is shared, and holds
// what is to be taken should rounding let nobody find it.
__device__ void draw(const double* weights, std::int64_t vocab, double uniform, std::int32_t& chosen) {
  const Ids ids = own_ids(vocab);
  double own = 0;
  for (std::int64_t i = ids.begin; i < ids.end; ++i) own += weights[i];
  double total = 0;
  const double before = sum_before(own, total);
  const double wanted = uniform * total;
  if (wanted < before || !(wanted < before + own)) return;
  double reached = before;
  std::int64_t token = ids.begin;
  for (std::int64_t i = ids.begin; i < ids.end; ++i) {
    if (weights[i] == 0) continue;
    token = i;
    reached += weights[i];
    if (wanted < reached) break;
  }
  chosen = static_cast<std::int32_t>(token);
}

__global__ void __launch_bounds__(kBlock) sample_tokens(SampleTokens op, double* all_weights) {
  __shared__ std::int32_t chosen;
  double* columns = dynamic_shared<double>();
  const std::int64_t row = block_index();
  const SampleRow choice = op.choices[row];
  double* weights = all_weights + row * op.vocab;
  const Survey found = survey(op, row, choice.repetition_penalty);
  if (found.first_broken < op.vocab || !found.any_finite) {
    if (thread_index() == 0) op.tokens[row] = static_cast<std::int32_t>(-1 - found.first_broken);
    return;
  }
  if (thread_index() == 0) chosen = static_cast<std::int32_t>(found.best);
  if (choice.temperature > 0) {
    const double largest = score_of(op, row * op.vocab + found.best, choice.repetition_penalty);
    for (std::int64_t i = thread_index(); i < op.vocab; i += kBlock) {
      const double score = score_of(op, row * op.vocab + i, choice.repetition_penalty);
      const double weight = exp((score - largest) / static_cast<double>(choice.temperature));
      weights[i] = weight >= static_cast<double>(choice.min_p) ? weight : 0;
    }
    block_barrier();
    if (choice.top_k > 0 && choice.top_k < op.vocab) {
      drop_beyond(weights, op.vocab,
                  limit_of(weights, op.vocab, static_cast<double>(choice.top_k), Measure::kCount, columns));
    }
    if (choice.top_p < 1) {
      const double wanted = static_cast<double>(choice.top_p) * total_of(weights, op.vocab);
      drop_beyond(weights, op.vocab, limit_of(weights, op.vocab, wanted, Measure::kWeight, columns));
    }
    draw(weights, op.vocab, uniform(choice.seed, stream_id("sampler"), choice.position), chosen);
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
  launch("sample_tokens", sample_tokens,
         {.blocks = op.rows, .threads = kBlock, .shared_bytes = 2 * kDigits * kBlock * sizeof(double)}, queue, op,
         weights.data());
}

}  // namespace kvloom::cuda
