#include "parallel/mesh_ranks.h"

#include "kernels/error.h"

namespace kvloom {

MeshRanks::MeshRanks(Communicator& world, const Mesh& mesh) : world_(world), mesh_(mesh) {
  if (world.size() != mesh.size()) fail("mesh: {} ranks for a mesh of {}", world.size(), mesh.size());
  const int rank = world.rank();
  place_ = mesh.place_of(rank);
  const auto [data, pipeline, tensor] = place_;
  data_ = world.split(pipeline * mesh.tensor + tensor, rank);
  pipeline_ = world.split(data * mesh.tensor + tensor, rank);
  tensor_ = world.split(data * mesh.pipeline + pipeline, rank);
  model_ = world.split(data, rank);
}

}  // namespace kvloom
