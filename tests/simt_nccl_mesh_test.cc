// Every mesh trains over NCCL as one rank does on the CPU, without a GPU: ranks are threads, and support/simt and
// support/nccl_threads stand for CUDA and NCCL. The host's words go by the threads' own world, as they go by MPI's.
#include "tests/support/gpu_mesh.h"

namespace kvloom {
namespace {

class NcclMeshOfThreads : public ::testing::TestWithParam<int> {};

TEST_P(NcclMeshOfThreads, TrainsAsOneRankOnTheCpu) {
  RankDevice device;
  device.device = {Device::Kind::kCuda, 0};
  device.connect = connect_by_nccl({.limit = std::chrono::seconds(60)});
  test::expect_meshes_train(GetParam(), device);
}

INSTANTIATE_TEST_SUITE_P(Ranks, NcclMeshOfThreads, ::testing::Values(2, 4));

}  // namespace
}  // namespace kvloom
