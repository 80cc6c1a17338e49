#include "launch/ranks.h"

#include <omp.h>

#include <algorithm>
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

}  // namespace

void take_down_on_failure(World& world, const std::function<void()>& work) {
  if (world.communicator().size() == 1) return work();
  try {
    work();
  } catch (const InputError& error) {
    world.abort(error.what(), 2);
  } catch (const std::exception& error) {
    world.abort(error.what(), 1);
  }
}

void run_in_world(const std::function<void(World&)>& work) {
  World world(launch_environment([](const char* name) { return std::getenv(name); }));
  share_cores(world.local_size());
  take_down_on_failure(world, [&] { work(world); });
}

}  // namespace kvloom
