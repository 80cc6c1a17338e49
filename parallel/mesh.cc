#include "parallel/mesh.h"

#include "kernels/error.h"

namespace kvloom {
namespace {

void require_size(const char* name, std::int64_t size, std::int64_t least, int ranks) {
  if (size >= least && size <= ranks) return;
  reject_input("mesh.{}: {} does not fit a world of {} ranks; it must be {} to {}, or start more ranks (mpirun -n N)",
               name, size, ranks, least, ranks);
}

bool within(int value, int size) { return value >= 0 && value < size; }

}  // namespace

Mesh Mesh::fit(std::int64_t data, std::int64_t pipeline, std::int64_t tensor, int ranks) {
  require_size("data", data, 0, ranks);
  require_size("pipeline", pipeline, 1, ranks);
  require_size("tensor", tensor, 1, ranks);
  const std::int64_t model = pipeline * tensor;
  if (data == 0 && ranks % model != 0) {
    reject_input("mesh: pipeline {} x tensor {} does not divide a world of {} ranks; start a multiple of {}", pipeline,
                 tensor, ranks, model);
  }
  if (data == 0) data = ranks / model;
  // Each is at most `ranks`, so a product of two fits 64 bits; compare by division to keep it so for three.
  if (data != ranks / model || ranks % model != 0) {
    reject_input(
        "mesh: data {} x pipeline {} x tensor {} does not make a world of {} ranks; leave data at 0 to take "
        "what is left",
        data, pipeline, tensor, ranks);
  }
  return {static_cast<int>(data), static_cast<int>(pipeline), static_cast<int>(tensor)};
}

MeshPlace Mesh::place_of(int rank) const {
  if (!within(rank, size())) fail("mesh: rank {} is not among its {} ranks", rank, size());
  return {.data = rank / (pipeline * tensor), .pipeline = rank / tensor % pipeline, .tensor = rank % tensor};
}

int Mesh::rank_of(const MeshPlace& place) const {
  if (!within(place.data, data) || !within(place.pipeline, pipeline) || !within(place.tensor, tensor)) {
    fail("mesh: ({}, {}, {}) is not in {} x {} x {}", place.data, place.pipeline, place.tensor, data, pipeline, tensor);
  }
  return (place.data * pipeline + place.pipeline) * tensor + place.tensor;
}

}  // namespace kvloom
