// Where a rank stands in the mesh data x pipeline x tensor, tensor fastest.
#pragma once

#include <cstdint>

namespace kvloom {

struct MeshPlace {
  int data = 0;
  int pipeline = 0;
  int tensor = 0;

  friend bool operator==(const MeshPlace&, const MeshPlace&) = default;
};

struct Mesh {
  int data = 1;
  int pipeline = 1;
  int tensor = 1;

  // The mesh of `ranks` ranks; data 0 takes what is left. Throws InputError with the sizes unless it fills the world.
  static Mesh fit(std::int64_t data, std::int64_t pipeline, std::int64_t tensor, int ranks);

  int size() const { return data * pipeline * tensor; }
  // Both throw Error for what is not in the mesh.
  MeshPlace place_of(int rank) const;
  int rank_of(const MeshPlace& place) const;

  friend bool operator==(const Mesh&, const Mesh&) = default;
};

}  // namespace kvloom
