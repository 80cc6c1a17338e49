// Ranks that should hold the same weights compare them: a silent fault of one machine is found and named.
#pragma once

#include <cstdint>

#include "core/model.h"
#include "parallel/mesh_ranks.h"

namespace kvloom {

// Compares the step and every weight with the data ranks that hold the same ones, and the norms with the tensor ranks.
// Collective over the mesh. Throws Error naming the ranks and the first tensors that differ.
void check_replicas(MeshRanks& ranks, const Model& model, std::uint64_t step);

}  // namespace kvloom
