// In place of mpi_*.cc when the build has no MPI.
#include "kernels/error.h"
#include "parallel/world.h"

namespace kvloom {

std::unique_ptr<RankSession> start_mpi(const WorldOptions&) {
  fail("started by an MPI launcher, but this build has no MPI: build with -DKVLOOM_MPI=ON, or start one process alone");
}

}  // namespace kvloom
