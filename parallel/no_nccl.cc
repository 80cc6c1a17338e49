// In place of nccl_*.cc when the build has no CUDA.
#include "kernels/error.h"
#include "parallel/nccl_communicator.h"

namespace kvloom {
namespace {

[[noreturn]] void no_nccl() { fail("this build has no CUDA and no NCCL: build with -DKVLOOM_CUDA=ON"); }

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, const CudaStream&, const NcclOptions&) {
  no_nccl();
}

std::string make_nccl_id() { no_nccl(); }

std::unique_ptr<Communicator> make_nccl_communicator(const std::string&, int, int, const CudaStream&,
                                                     const NcclOptions&) {
  no_nccl();
}

}  // namespace kvloom
