// Ranks as threads of one process, and the world of one.
#pragma once

#include <functional>
#include <memory>

#include "parallel/communicator.h"

namespace kvloom {

// Runs body once on each of `ranks` threads, with that rank's communicator, and returns when all have ended. Reductions
// go in order of rank. When one rank throws, every rank that waits or will wait in a communicator throws too, and the
// first exception comes out of here. A rank that waits for one that has ended throws Error.
void run_thread_ranks(int ranks, const std::function<void(Communicator&)>& body);

// The only rank of a world of one, which may send messages to itself.
std::unique_ptr<Communicator> make_single_rank();

}  // namespace kvloom
