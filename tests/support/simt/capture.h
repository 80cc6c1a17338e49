// What is given to a stream of the device that stands for a GPU: queued (streams.h) or, while a graph is being recorded
// from that stream, whenever the graph is launched.
#pragma once

#include <functional>

struct CUstream_st;  // what cudaStream_t points to

namespace kvloom::simt {

// `work` holds copies of all it needs but device memory.
void give(CUstream_st* stream, std::function<void()> work);

}  // namespace kvloom::simt
