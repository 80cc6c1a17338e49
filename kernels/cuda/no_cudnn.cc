// In place of the cuDNN files where the build found no headers of cuDNN.
#include "kernels/cuda/cudnn_plans.h"
#include "kernels/error.h"

namespace kvloom::cuda {

struct CudnnPlans::Library {};

CudnnPlans::CudnnPlans(Queue&) { fail("this build has no cuDNN: its headers were not found"); }
CudnnPlans::~CudnnPlans() = default;
std::size_t CudnnPlans::version() const { return 0; }
std::optional<CudnnAttentionPlan<CudnnForwardPlaces>> CudnnPlans::forward(const CudnnAttentionShape&) {
  return std::nullopt;
}
std::optional<CudnnAttentionPlan<CudnnBackwardPlaces>> CudnnPlans::backward(const CudnnAttentionShape&) {
  return std::nullopt;
}

}  // namespace kvloom::cuda
