#include "parallel/mesh_ranks.h"

#include "kernels/error.h"

namespace kvloom {

MeshRanks::MeshRanks(Communicator& world, Communicator& tensors, const Mesh& mesh) : world_(world), mesh_(mesh) {
  if (world.size() != mesh.size()) fail("mesh: {} ranks for a mesh of {}", world.size(), mesh.size());
  if (tensors.size() != world.size() || tensors.rank() != world.rank()) {
    fail("mesh: rank {} of {} is rank {} of {} where tensors travel", world.rank(), world.size(), tensors.rank(),
         tensors.size());
  }
  const int rank = world.rank();
  place_ = mesh.place_of(rank);
  const auto [data, pipeline, tensor] = place_;
  data_ = tensors.split(pipeline * mesh.tensor + tensor, rank);
  pipeline_ = tensors.split(data * mesh.tensor + tensor, rank);
  tensor_ = tensors.split(data * mesh.pipeline + pipeline, rank);
  model_ = tensors.split(data, rank);
}

}  // namespace kvloom
