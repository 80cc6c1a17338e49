// A schedule as a picture: who computes what when.
#pragma once

#include <string>

#include "parallel/chunk_chain.h"
#include "parallel/schedule.h"

namespace kvloom {

// Two lines a rank, `columns` wide: forward and backward, each column the micro-batch that computes there for most of
// its time (0-9, a-z, then again from 0), or '.' where the rank waits or does the other.
std::string text_gantt(const ScheduleTimes& times, int columns);

// The same to scale, a rectangle a chunk with what it is as its title.
std::string svg_gantt(const ChunkChain& chain, const ScheduleTimes& times);

}  // namespace kvloom
