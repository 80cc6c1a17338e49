// What a verb that runs on ranks needs from the launcher's side.
#pragma once

#include <functional>
#include <string>

#include "parallel/device_ranks.h"
#include "parallel/world.h"

namespace kvloom {

// Joins the world that the environment names, gives each rank its share of the cores, and runs `work`. When ranks are
// several and one throws, it takes all of them down with its message.
void run_in_world(const std::function<void(World&)>& work);

// The same for a part of the work whose tensors live outside it: reductions that were started go on writing into them
// until the process has ended.
void take_down_on_failure(World& world, const std::function<void()>& work);

// For a verb that runs on one rank: where a launcher has started several, throws InputError on the first, and ends the
// others in silence. Reads the environment alone.
void require_one_rank();

// The GPU of this rank as --device names it (parallel/device_ranks.h), and NCCL's own settings where it wants other
// ones. Before the first call of CUDA.
Device device_of_rank(const std::string& text, const World& world, GpuSharing sharing);

// What ends this rank, and so all of them, with a reason that another thread than the calling one has found. The
// calling thread meets the same failure in its next call, and is left a few seconds to say what it was about: MPI is
// its alone.
std::function<void(const std::string&)> end_of_rank(const World& world);

}  // namespace kvloom
