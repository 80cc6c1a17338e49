// The communicators of a rank in a mesh: slices of the one array of ranks (mesh.h).
#pragma once

#include <memory>

#include "parallel/communicator.h"
#include "parallel/mesh.h"

namespace kvloom {

class MeshRanks {
 public:
  // `world` outlives this and has as many ranks as the mesh. Collective.
  MeshRanks(Communicator& world, const Mesh& mesh) : MeshRanks(world, world, mesh) {}
  // The same where tensors travel over another communicator of the same ranks in the same order: GPUs' over NCCL. It
  // takes the host's memory too (parallel/device_ranks.h), and outlives this.
  MeshRanks(Communicator& world, Communicator& tensors, const Mesh& mesh);

  const Mesh& mesh() const { return mesh_; }
  const MeshPlace& place() const { return place_; }

  Communicator& world() { return world_; }         // everyone; what lies in the host's memory only
  Communicator& data() { return *data_; }          // same part of the model, other data
  Communicator& pipeline() { return *pipeline_; }  // same tensor part, other layers
  Communicator& tensor() { return *tensor_; }      // same layers, other parts of them
  Communicator& model() { return *model_; }        // pipeline x tensor: one whole model

 private:
  Communicator& world_;
  Mesh mesh_;
  MeshPlace place_;
  std::unique_ptr<Communicator> data_;
  std::unique_ptr<Communicator> pipeline_;
  std::unique_ptr<Communicator> tensor_;
  std::unique_ptr<Communicator> model_;
};

}  // namespace kvloom
