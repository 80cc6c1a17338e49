// Gradients of data-parallel ranks, summed in buckets of fixed size.
#pragma once

#include <cstddef>
#include <span>

#include "parallel/communicator.h"

namespace kvloom {

// 16 MiB of f32: large enough to use the network, small enough for one to travel while the next is made.
inline constexpr std::size_t kBucketElements = std::size_t{4} << 20;

// gradients = the sum over all ranks' gradients, the same bits on every rank.
void all_reduce_gradients(Communicator& communicator, std::span<float> gradients,
                          std::size_t bucket_elements = kBucketElements);

}  // namespace kvloom
