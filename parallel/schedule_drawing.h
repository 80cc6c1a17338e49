// A schedule as a picture: who computes what when.
#pragma once

#include <string>

#include "parallel/chunk_chain.h"
#include "parallel/schedule.h"

namespace kvloom {

// Two lines a rank, `columns` wide: forward and backward. A column shows what fills most of it: in its line the
// micro-batch (0-9, a-z, then again from 0) that does most of that, '.' where the rank waits or does the other.
std::string text_gantt(const ScheduleTimes& times, int columns);

// The same to scale: a rectangle a chunk, a line a message between ranks on the way forward, each with what it is as
// its title, and ticks of time.
std::string svg_gantt(const ChunkChain& chain, const ScheduleTimes& times);

}  // namespace kvloom
