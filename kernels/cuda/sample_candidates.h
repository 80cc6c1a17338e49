// For sample.cu: the tokens that a row may still choose, in lists. Each warp of the row's block has a stretch of the
// vocabulary and there, in scratch memory, a list, ids ascending. Sums have one order, fixed by what is listed.
#pragma once

#include <cstdint>

#include "kernels/cuda/packs.h"

namespace kvloom::cuda {

inline constexpr int kSampleBlock = 512;
inline constexpr int kSampleWarps = kSampleBlock / kWarp;

__device__ inline int warp_index() { return thread_index() / kWarp; }
__device__ inline int lane_index() { return thread_index() % kWarp; }

struct Largest {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct Smallest {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

// Of values that the lanes of a warp have alike: the sum of those of the warps before, and of all.
template <typename T>
struct Sums {
  T before;
  T all;
};
template <typename T>
__device__ inline Sums<T> sums_over_warps(T own) {
  __shared__ T values[kSampleWarps];
  block_barrier();  // the values of the last call have been read
  if (lane_index() == 0) values[warp_index()] = own;
  block_barrier();
  Sums<T> sums{};
#pragma unroll
  for (int w = 0; w < kSampleWarps; ++w) {
    if (w == warp_index()) sums.before = sums.all;
    sums.all += values[w];
  }
  return sums;
}

// Where a lane's entry stands among those that the warp appends to `count` others, which are counted on.
__device__ inline int append(bool is_kept, int& count) {
  const std::uint32_t votes = ballot(is_kept);
  const int place = count + count_bits(votes & ((1u << lane_index()) - 1u));
  count += count_bits(votes);
  return place;
}

// The tokens of a row that may be chosen, with their weights relative to the most probable one's 1.
struct Candidates {
  double* weights;  // of the warp
  std::int32_t* tokens;
  int own;       // the warp's number of them
  int all;       // the row's
  double least;  // no weight of the row is smaller
};

struct Ids {
  std::int64_t begin;
  std::int64_t end;
};
__device__ inline Ids ids_of_warp(std::int64_t vocab, int warp) {
  return {vocab * warp / kSampleWarps, vocab * (warp + 1) / kSampleWarps};
}

inline constexpr int kAhead = 4;  // loads of a lane that are under way at once

// Calls body(weight, token, exists) for the warp's candidates, 32 at a time: all lanes take part, and those beyond the
// end have a weight of 0. What the body writes to lists may only take places that are no later than the one it stands
// at.
template <typename Body>
__device__ inline void for_each(const Candidates& list, Body&& body) {
  for (int first = 0; first < list.own; first += kAhead * kWarp) {
    double weights[kAhead];
    std::int32_t tokens[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int i = first + a * kWarp + lane_index();
      weights[a] = i < list.own ? list.weights[i] : 0;
      tokens[a] = i < list.own ? list.tokens[i] : 0;
    }
    warp_barrier();  // all have read before any writes
#pragma unroll
    for (int a = 0; a < kAhead; ++a) body(weights[a], tokens[a], first + a * kWarp + lane_index() < list.own);
  }
}

__device__ inline double total_of_warp(const Candidates& list) {
  double sum = 0;
  for_each(list, [&](double weight, std::int32_t, bool) { sum += weight; });
  return combine_of_warp(sum, Plus{});
}

}  // namespace kvloom::cuda
