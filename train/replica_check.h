// Ranks that should hold the same weights compare them: a silent fault of one machine is found and named.
#pragma once

#include <cstdint>

#include "core/model.h"
#include "parallel/mesh_ranks.h"

namespace kvloom {

// Compares the step and every weight with the data ranks that hold the same part of the model, and what several ranks
// of one model hold (norms, K and V projections that tensor ranks share, tied embeddings of two stages) among them.
// Collective over the mesh. Throws Error naming the ranks and the first tensors that differ.
void check_replicas(MeshRanks& ranks, const Model& model, std::uint64_t step);

}  // namespace kvloom
