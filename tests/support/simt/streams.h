// Streams of the device that stands for a GPU: each does its work in a thread of its own, in order and later than it
// was given, by chance much later, so that a stream or a host that should have waited for another finds what is not
// there yet.
#pragma once

#include <functional>

struct CUstream_st;  // what cudaStream_t points to

namespace kvloom::simt {

// At the end of the stream's work. For capture.h, which says who records.
void enqueue(CUstream_st* stream, std::function<void()> work);
void drain(CUstream_st* stream);
// Whether no stream has work left: what has been freed may go.
bool all_idle();

}  // namespace kvloom::simt
