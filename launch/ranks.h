// What a verb that runs on ranks needs from the launcher's side.
#pragma once

#include <functional>

#include "parallel/world.h"

namespace kvloom {

// Joins the world that the environment names, gives each rank its share of the cores, and runs `work`. When ranks are
// several and one throws, it takes all of them down with its message.
void run_in_world(const std::function<void(World&)>& work);

// The same for a part of the work whose tensors live outside it: reductions that were started go on writing into them
// until the process has ended.
void take_down_on_failure(World& world, const std::function<void()>& work);

}  // namespace kvloom
