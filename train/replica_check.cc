#include "train/replica_check.h"

#include <fmt/ranges.h>

#include <string>
#include <vector>

#include "core/checksum.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

struct Fingerprint {
  std::string name;
  std::uint64_t value;
};

std::vector<Fingerprint> fingerprints(const Model& model, std::uint64_t step, const auto& wanted) {
  std::vector<Fingerprint> prints = {{"the step", step}};
  for (const Parameter& parameter : model.layout().all()) {
    if (!wanted(parameter)) continue;
    const Tensor values = model.master().view(parameter.offset, parameter.shape);
    const std::vector<float> on_host = values.values<float>();
    prints.push_back({parameter.name, checksum(std::as_bytes(std::span(on_host)))});
  }
  return prints;
}

// Every rank of `group` brings prints of the same names.
void compare(Communicator& group, const char* kind, const std::vector<Fingerprint>& prints) {
  if (group.size() == 1) return;
  std::vector<std::int64_t> own;
  for (const Fingerprint& print : prints) own.push_back(static_cast<std::int64_t>(print.value));
  std::vector<std::int64_t> all(own.size() * static_cast<std::size_t>(group.size()));
  group.all_gather(std::span<const std::int64_t>(own), std::span(all));
  for (int rank = 1; rank < group.size(); ++rank) {
    std::vector<std::string> different;
    for (std::size_t i = 0; i < own.size(); ++i) {
      if (all[i] != all[static_cast<std::size_t>(rank) * own.size() + i]) different.push_back(prints[i].name);
    }
    if (different.empty()) continue;
    const std::size_t count = different.size();
    if (count > 4) different.resize(4);
    fail("replicas: {} ranks 0 and {} differ in {} of {} values, first {}", kind, rank, count, own.size(),
         fmt::join(different, ", "));
  }
}

}  // namespace

void check_replicas(MeshRanks& ranks, const Model& model, std::uint64_t step) {
  compare(ranks.data(), "data", fingerprints(model, step, [](const Parameter&) { return true; }));
  compare(ranks.tensor(), "tensor", fingerprints(model, step, [](const Parameter& parameter) {
            return parameter.copies == TensorCopies::kHeadNorm || parameter.copies == TensorCopies::kHiddenNorm;
          }));
}

}  // namespace kvloom
