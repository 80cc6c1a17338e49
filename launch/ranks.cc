#include "launch/ranks.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "kernels/error.h"

namespace kvloom {
namespace {

// Ranks of one machine share its cores, unless mpirun bound them or the user said otherwise.
void share_cores(int local_size) {
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return;
  const int share = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / local_size);
  omp_set_num_threads(std::min(omp_get_num_procs(), share));
}

[[noreturn]] void take_all_down(World& world, const std::exception& error, int status) {
  // What every rank finds wrong is said by the first: the others give it time to.
  if (world.communicator().rank() != 0) std::this_thread::sleep_for(std::chrono::milliseconds(500));
  world.abort(error.what(), status);
}

}  // namespace

void run_in_world(const std::function<void(World&)>& work) {
  World world(launch_environment([](const char* name) { return std::getenv(name); }));
  share_cores(world.local_size());
  if (world.communicator().size() == 1) return work(world);
  try {
    work(world);
  } catch (const InputError& error) {
    take_all_down(world, error, 2);
  } catch (const std::exception& error) {
    take_all_down(world, error, 1);
  }
}

}  // namespace kvloom
