#include "parallel/data_replicas.h"

#include <algorithm>

#include "core/ops.h"
#include "kernels/error.h"

namespace kvloom {

DataReplicas::DataReplicas(Communicator& ranks, UpdateSharing sharing) : ranks_(ranks), sharing_(sharing) {
  if (ranks.size() > kFlatPadding) reject_input("mesh.data: {}; at most {}", ranks.size(), kFlatPadding);
}

ElementRange DataReplicas::updated_here(std::int64_t count) const {
  if (!shares()) return {0, count};
  const std::int64_t share = share_of(count);
  return {std::min(count, ranks_.rank() * share), std::min(count, (ranks_.rank() + 1) * share)};
}

std::vector<Transfer> DataReplicas::start_sum(ElementRange range, ModelGradients& gradients) {
  std::vector<Transfer> transfers;
  if (ranks_.size() == 1 || range.size() <= 0) return transfers;
  const auto elements = [&](std::int64_t begin, std::int64_t end) {
    return gradients.flat.as<float>().subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  };
  if (!shares()) {
    transfers.push_back(ranks_.iall_reduce(elements(range.begin, range.end)));
    return transfers;
  }
  // A reduce-scatter of this range: each piece goes to whom it belongs to.
  const std::int64_t share = share_of(gradients.flat.count());
  for (std::int64_t begin = range.begin; begin < range.end;) {
    const std::int64_t owner = begin / share;
    const std::int64_t end = std::min(range.end, (owner + 1) * share);
    transfers.push_back(ranks_.ireduce(elements(begin, end), static_cast<int>(owner)));
    begin = end;
  }
  return transfers;
}

bool DataReplicas::gather(Model& model) {
  if (!shares()) return false;
  const std::int64_t share = share_of(model.layout().count());
  const Tensor own = model.padded_master().rows(ranks_.rank() * share, (ranks_.rank() + 1) * share);
  Tensor updated = Tensor::empty(model.allocator(), {share}, DType::kF32);
  ops::copy(own, updated);
  Tensor all = model.padded_master().rows(0, share * ranks_.size());
  ranks_.all_gather(std::span<const float>(updated.as<float>()), all.as<float>());
  return true;
}

}  // namespace kvloom
