#include "kernels/cuda/attention_splits.h"

namespace kvloom::cuda {
namespace {

constexpr int kBlock = 128;

// A block has a head of a sequence.
template <typename T>
__global__ void __launch_bounds__(kBlock) attention_join(AttentionForward op, Partials partials) {
  const AttentionShape& shape = op.shape;
  const std::int64_t splits = partials.splits;
  const std::int64_t batch = block_index() / shape.heads;
  const float* largest = partials.largest + block_index() * splits;
  const float* total = partials.total + block_index() * splits;
  const float* sums = partials.sums + block_index() * splits * shape.head_dim;
  const std::int64_t used = used_splits(keys_of_query(shape_of(op, batch), 0), splits);
  RunningSoftmax softmax;
  for (std::int64_t s = 0; s < used; ++s) softmax.largest = fmaxf(softmax.largest, largest[s]);
  for (std::int64_t s = 0; s < used; ++s) softmax.total += softmax.weight(largest[s]) * total[s];
  for (std::int64_t d = thread_index(); d < shape.head_dim; d += kBlock) {
    float sum = 0;
    for (std::int64_t s = 0; s < used; ++s) sum += softmax.weight(largest[s]) * sums[s * shape.head_dim + d];
    answer<T>(op, batch, block_index() % shape.heads, d, softmax, sum);
  }
}

}  // namespace

void join_splits(const AttentionForward& op, const Partials& partials, Queue& queue) {
  with_compute_type(op.shape.dtype, "attention", [&]<typename T>() {
    launch("attention_join", attention_join<T>, {.blocks = op.shape.batch * op.shape.heads, .threads = kBlock}, queue,
           op, partials);
  });
}

}  // namespace kvloom::cuda
