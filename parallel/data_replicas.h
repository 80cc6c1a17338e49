// Ranks that hold the same part of a model and see other data: their gradients are summed and their weights kept equal,
// whole on each or, with ZeRO-1 (Rajbhandari et al. 2020, section 5.1), an update shared out among them.
#pragma once

#include <cstdint>
#include <vector>

#include "core/model.h"
#include "parallel/communicator.h"

namespace kvloom {

enum class UpdateSharing : std::uint8_t {
  kWhole,  // every rank updates every weight
  kShare,  // ZeRO-1: each updates its range, and gathers the others'
};

// Elements [begin, end) of a flat buffer.
struct ElementRange {
  std::int64_t begin;
  std::int64_t end;

  std::int64_t size() const { return end - begin; }
};

class DataReplicas {
 public:
  // `ranks` outlives this. Throws InputError for more ranks than kFlatPadding.
  DataReplicas(Communicator& ranks, UpdateSharing sharing);

  // What this rank updates of `count` weights.
  ElementRange updated_here(std::int64_t count) const;

  // Starts: elements of `range` that this rank updates = their sum over ranks; the others have no meaning afterwards.
  std::vector<Transfer> start_sum(ElementRange range, ModelGradients& gradients);

  // After the update: all of the model's master weights; true when others have changed some of them, and then the model
  // needs a refresh.
  bool gather(Model& model);

  bool shares() const { return sharing_ == UpdateSharing::kShare && ranks_.size() > 1; }

 private:
  std::int64_t share_of(std::int64_t count) const { return (count + ranks_.size() - 1) / ranks_.size(); }

  Communicator& ranks_;
  UpdateSharing sharing_;
};

}  // namespace kvloom
