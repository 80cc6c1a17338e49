// `kvloom bench train --mesh`: what splitting a training step among ranks costs. In one run, on one core or one GPU a
// rank: a step of one rank alone, and of all ranks as tensor, pipeline and data ranks, by turns.
#pragma once

#include <ostream>

#include "launch/bench_form.h"
#include "parallel/communicator.h"
#include "train/mesh_measurement.h"

namespace kvloom {

struct BenchMeshRequest {
  MeshMeasurementRequest mesh;
  BenchForm form = BenchForm::kText;
};

// Collective over `world`, whose ranks on CPUs each keep to a core and one thread (cores.h). Rank 0 writes.
void bench_mesh(const BenchMeshRequest& request, Communicator& world, std::ostream& out);

}  // namespace kvloom
