// Gradients on their way from backward to the update: summed over the ranks that hold the same weights, then over those
// that see other data, in buckets that travel while backward goes on.
#pragma once

#include <cstdint>
#include <vector>

#include "core/model.h"
#include "parallel/communicator.h"
#include "parallel/data_replicas.h"
#include "parallel/replica_gradients.h"

namespace kvloom {

// 4 MiB of f32: large enough to use a network, small enough to stay in the caches of ranks that share memory, where
// 16 MiB took twice the time a byte.
inline constexpr std::int64_t kBucketElements = std::int64_t{1} << 20;

// Of one step. Every rank calls `complete` for the parts that it holds, in the order in which backward completes them,
// and `finish`.
class GradientBuckets {
 public:
  // All outlive this.
  GradientBuckets(const Model& model, ReplicaGradients& replicas, DataReplicas& data, ModelGradients& gradients,
                  std::int64_t bucket_elements = kBucketElements);

  // Backward will add nothing more to the gradient of this part (Parameter::part).
  void complete(int part);
  // Backward is over: whatever was not complete is. Returns when the gradients of what this rank updates are sums.
  void finish();

 private:
  ElementRange range_of(int part) const;
  void take(int part);
  void start(ElementRange range);
  void start_full_buckets();

  const Model& model_;
  ReplicaGradients& replicas_;
  DataReplicas& data_;
  ModelGradients& gradients_;
  std::int64_t bucket_elements_;
  std::vector<bool> taken_;     // by part, the embedding's first
  ElementRange waiting_{0, 0};  // complete, in no bucket yet; backward goes down, so that it grows downwards
  std::vector<Transfer> started_;
};

}  // namespace kvloom
