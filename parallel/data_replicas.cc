#include "parallel/data_replicas.h"

#include <algorithm>

#include "core/ops.h"
#include "kernels/error.h"
#include "parallel/gradient_buckets.h"

namespace kvloom {

DataReplicas::DataReplicas(Communicator& ranks, UpdateSharing sharing) : ranks_(ranks), sharing_(sharing) {
  if (ranks.size() > kFlatPadding) reject_input("mesh.data: {}; at most {}", ranks.size(), kFlatPadding);
}

ElementRange DataReplicas::updated_here(std::int64_t count) const {
  if (!shares()) return {0, count};
  const std::int64_t share = share_of(count);
  return {std::min(count, ranks_.rank() * share), std::min(count, (ranks_.rank() + 1) * share)};
}

void DataReplicas::sum(ModelGradients& gradients) {
  if (!shares()) return all_reduce_gradients(ranks_, gradients.flat.as<float>());
  const std::int64_t share = share_of(gradients.flat.count());
  Tensor own = gradients.padded.rows(ranks_.rank() * share, (ranks_.rank() + 1) * share);
  std::vector<float> sum(static_cast<std::size_t>(share));
  const Tensor all = gradients.padded.rows(0, share * ranks_.size());
  ranks_.reduce_scatter(all.as<float>(), std::span(sum));
  std::ranges::copy(sum, own.as<float>().begin());
}

void DataReplicas::gather(Model& model) {
  if (!shares()) return;
  const std::int64_t share = share_of(model.layout().count());
  const Tensor own = model.padded_master().rows(ranks_.rank() * share, (ranks_.rank() + 1) * share);
  const std::vector<float> updated(own.as<float>().begin(), own.as<float>().end());
  Tensor all = model.padded_master().rows(0, share * ranks_.size());
  ranks_.all_gather(std::span<const float>(updated), all.as<float>());
  model.refresh();
}

}  // namespace kvloom
