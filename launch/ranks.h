// What a verb that runs on ranks needs from the launcher's side.
#pragma once

#include <functional>

#include "parallel/world.h"

namespace kvloom {

// Joins the world that the environment names, gives each rank its share of the cores, and runs `work`. When ranks are
// several and one throws, it takes all of them down with its message.
void run_in_world(const std::function<void(World&)>& work);

}  // namespace kvloom
