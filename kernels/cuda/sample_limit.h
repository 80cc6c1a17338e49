// For sample.cu: which of a row's candidates top-k and top-p keep. Found by the digits of their weights, from the
// highest on, until so few can be the last one kept that each is compared with all of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/sample_candidates.h"

namespace kvloom::cuda {

inline constexpr int kDigitBits = 4;
inline constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == kSampleWarps);  // each warp adds up one
inline constexpr int kFew = 256;         // so many are compared with one another
static_assert(kFew <= kSampleBlock);

enum class Measure { kCount, kWeight };

__device__ inline double measure_of(Measure measure, double weight) {
  return measure == Measure::kCount ? 1.0 : weight;
}

// Of weights by a digit of their bits, what each thread has seen: [kDigits, kSampleBlock], in shared memory.
struct Columns {
  double* measures;
  int* counts;
};
inline constexpr std::size_t kColumnsBytes = kDigits * kSampleBlock * (sizeof(double) + sizeof(int));

struct Digits {
  double measure[kDigits];
  int count[kDigits];
};

__device__ inline std::uint64_t without_low_bits(double weight, int bits) {
  return bits < 64 ? bits_of(weight) >> bits : 0;
}

// The digit at `shift` of weights that are `prefix` above it.
__device__ inline void count_digits(const Candidates& list, std::uint64_t prefix, int shift, Measure measure,
                                    const Columns& columns, Digits& digits) {
  const int thread = thread_index();
  for (int d = 0; d < kDigits; ++d) {
    columns.measures[d * kSampleBlock + thread] = 0;
    columns.counts[d * kSampleBlock + thread] = 0;
  }
  for_each(list, [&](double weight, std::int32_t, bool exists) {
    if (!exists || without_low_bits(weight, shift + kDigitBits) != prefix) return;
    const auto digit = static_cast<int>(without_low_bits(weight, shift) & (kDigits - 1));
    columns.measures[digit * kSampleBlock + thread] += measure_of(measure, weight);
    columns.counts[digit * kSampleBlock + thread] += 1;
  });
  block_barrier();
  const int digit = warp_index();
  double sum = 0;
  int count = 0;
  for (int i = lane_index(); i < kSampleBlock; i += kWarp) {
    sum += columns.measures[digit * kSampleBlock + i];
    count += columns.counts[digit * kSampleBlock + i];
  }
  sum = combine_of_warp(sum, Plus{});
  count = combine_of_warp(count, Plus{});
  if (lane_index() == 0) {
    digits.measure[digit] = sum;
    digits.count[digit] = count;
  }
  block_barrier();
}

// Where the most probable tokens that reach a measure together end: at weights of at least `least`, of those equal to
// it only the `ties` of lowest id.
struct Limit {
  double least;
  int ties;
  int equal;
};

// Weights that are `prefix` above their `shift` low bits, and what is known of them.
struct Group {
  std::uint64_t prefix;
  int shift;
  double above;  // the measure of larger weights
  int all;       // their number in the row
  int own;       // in the warp's list
};

// The limit lies in the group, whose weights are all equal.
__device__ inline Limit limit_of_equals(const Group& group, double wanted, Measure measure) {
  const auto least = double_of(group.prefix);
  const double ties = ceil((wanted - group.above) / measure_of(measure, least));
  return {least, ties < 1 ? 1 : ties > group.all ? group.all : static_cast<int>(ties), group.all};
}

// The limit lies in the group, which has kFew weights at most: each is compared with all of them.
__device__ inline Limit limit_of_few(const Candidates& list, const Group& group, double wanted, Measure measure,
                                     double* weights) {
  int end = sums_over_warps(group.own).before;
  for_each(list, [&](double weight, std::int32_t, bool exists) {
    const bool is_in = exists && without_low_bits(weight, group.shift) == group.prefix;
    const int place = append(is_in, end);
    if (is_in) weights[place] = weight;
  });
  block_barrier();
  const bool has_one = thread_index() < group.all;
  const double own = has_one ? weights[thread_index()] : 0;
  double reached = group.above;
  int equal = 0;
  if (has_one) {
    for (int i = 0; i < group.all; ++i) {
      if (weights[i] > own) reached += measure_of(measure, weights[i]);
      equal += weights[i] == own ? 1 : 0;
    }
  }
  const bool reaches = has_one && wanted <= reached + equal * measure_of(measure, own);
  double least = combine_of_group<kSampleBlock>(reaches ? own : 0.0, Largest{});
  // Rounded otherwise, what did reach it may not: then all are needed.
  if (least == 0) least = combine_of_group<kSampleBlock>(has_one ? own : 1.0, Smallest{});
  const bool is_it = own == least;
  double ties = is_it ? ceil((wanted - reached) / measure_of(measure, own)) : 0;
  ties = combine_of_group<kSampleBlock>(ties, Largest{});
  equal = combine_of_group<kSampleBlock>(is_it ? equal : 0, Largest{});
  return {least, ties < 1 ? 1 : ties > equal ? equal : static_cast<int>(ties), equal};
}

__device__ inline Limit limit_of(const Candidates& list, double wanted, Measure measure, const Columns& columns) {
  __shared__ Digits digits;
  // The largest weight is 1. The bits that all have in common are not looked at.
  Group group{0, 0, 0, list.all, list.own};
  while (without_low_bits(list.least, group.shift) != without_low_bits(1.0, group.shift)) group.shift += kDigitBits;
  group.prefix = without_low_bits(1.0, group.shift);
  while (group.all > kFew && group.shift > 0) {
    group.shift -= kDigitBits;
    count_digits(list, group.prefix, group.shift, measure, columns, digits);
    int chosen = kDigits;
    int lowest = 0;
    for (int d = kDigits - 1; d >= 0 && chosen == kDigits; --d) {
      if (digits.count[d] == 0) continue;
      lowest = d;
      if (group.above + digits.measure[d] >= wanted) {
        chosen = d;
      } else {
        group.above += digits.measure[d];
      }
    }
    // Rounded otherwise, the parts of what did reach it may not: then all of them are needed.
    if (chosen == kDigits) {
      chosen = lowest;
      group.above -= digits.measure[lowest];
    }
    group.prefix = group.prefix << kDigitBits | static_cast<std::uint64_t>(chosen);
    group.all = digits.count[chosen];
    group.own = combine_of_warp(columns.counts[chosen * kSampleBlock + thread_index()], Plus{});
    block_barrier();  // all have read the digits and the columns
  }
  if (group.all > kFew) return limit_of_equals(group, wanted, measure);
  return limit_of_few(list, group, wanted, measure, columns.measures);
}

__device__ inline void drop_beyond(Candidates& list, const Limit& limit) {
  int ties = 0;  // of the warps before, then also of the warp's that have been passed
  if (limit.ties < limit.equal) {
    int own = 0;
    for_each(list, [&](double weight, std::int32_t, bool) { append(weight == limit.least, own); });
    ties = sums_over_warps(own).before;
  }
  int kept = 0;
  for_each(list, [&](double weight, std::int32_t token, bool exists) {
    const bool is_tie = weight == limit.least;
    const int rank = append(is_tie, ties);
    const bool is_kept = exists && (is_tie ? limit.ties == limit.equal || rank < limit.ties : weight > limit.least);
    const int place = append(is_kept, kept);
    if (!is_kept) return;
    list.weights[place] = weight;
    list.tokens[place] = token;
  });
  list.own = kept;
  list.all = sums_over_warps(kept).all;
  list.least = limit.least;
}

}  // namespace kvloom::cuda
