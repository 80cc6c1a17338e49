// Of tests/support/simt/capture.cc, for the rest of the runtime.
#pragma once

#include <cuda_runtime_api.h>

namespace kvloom::simt {

enum class Refused { kAlways, kUnlessRelaxed };

// An error, which ends the recording, if a graph is being recorded where such a call is refused.
cudaError_t refuse_while_recording(Refused what);

}  // namespace kvloom::simt
