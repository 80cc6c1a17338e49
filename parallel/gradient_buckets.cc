#include "parallel/gradient_buckets.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvloom {

void all_reduce_gradients(Communicator& communicator, std::span<float> gradients, std::size_t bucket_elements) {
  if (bucket_elements == 0) fail("gradient buckets of no elements");
  if (communicator.size() == 1) return;
  for (std::size_t begin = 0; begin < gradients.size(); begin += bucket_elements) {
    communicator.all_reduce(gradients.subspan(begin, std::min(bucket_elements, gradients.size() - begin)));
  }
}

}  // namespace kvloom
