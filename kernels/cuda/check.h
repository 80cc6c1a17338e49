// The one check of CUDA's calls. Only for code that is built with CUDA.
#pragma once

#include <cuda_runtime_api.h>

namespace kvloom {

// Throws Error naming the call and CUDA's reason unless `code` is success: check_cuda(cudaMalloc(...), "cudaMalloc").
void check_cuda(cudaError_t code, const char* call);

}  // namespace kvloom
