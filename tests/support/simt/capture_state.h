// Of tests/support/simt/capture.cc, for the rest of the runtime.
#pragma once

#include <cuda_runtime_api.h>

namespace kvloom::simt {

bool is_recording(cudaStream_t stream);

enum class Refused { kAlways, kUnlessRelaxed };

// An error, which ends the recording, if a graph is being recorded where such a call is refused.
cudaError_t refuse_while_recording(Refused what);

// The same for a copy given to `stream` of which one end is the host's memory: a record would keep its address, long
// after what lies there has gone.
cudaError_t refuse_host_memory(cudaStream_t stream, const void* to, const void* from);

}  // namespace kvloom::simt
