// In place of the cuDNN files where the build found no headers of cuDNN.
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/error.h"

namespace kvloom::cuda {

struct CudnnAttention::State {};

CudnnAttention::CudnnAttention(Queue&, std::function<void(const std::string&)>) {
  fail("this build has no cuDNN: its headers were not found");
}
CudnnAttention::~CudnnAttention() = default;
bool CudnnAttention::run(const AttentionForward&, Queue&) { return false; }
bool CudnnAttention::run(const AttentionBackward&, Queue&) { return false; }

}  // namespace kvloom::cuda
