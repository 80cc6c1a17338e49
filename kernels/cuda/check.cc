#include "kernels/cuda/check.h"

#include "kernels/error.h"

namespace kvloom {

void check_cuda(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick is not left for the next call
  fail("{}: {} ({})", call, cudaGetErrorString(code), cudaGetErrorName(code));
}

}  // namespace kvloom
