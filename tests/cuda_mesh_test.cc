// Every mesh trains on a GPU as one rank does on the CPU. Ranks are threads that share the GPU and talk through the
// host, so this needs no NCCL; it also runs with the kernels compiled for the host (simt_cuda_mesh_test), where a rank
// that touches the device's memory other than by kernels, copies and its communicator ends the process, unless another
// one's kernel runs at that moment.
#include "tests/support/gpu.h"
#include "tests/support/gpu_mesh.h"
#include "tests/support/host_staging.h"

namespace kvloom {
namespace {

class CudaMesh : public test::GpuTest, public ::testing::WithParamInterface<int> {};
class CudaMeshSetup : public test::GpuTest {};

TEST_P(CudaMesh, TrainsAsOneRankOnTheCpu) {
  test::expect_meshes_train(GetParam(),
                            {.device = {Device::Kind::kCuda, 0}, .connect = test::connect_by_host_staging()});
}

INSTANTIATE_TEST_SUITE_P(Ranks, CudaMesh, ::testing::Values(2, 4));

TEST_F(CudaMeshSetup, SeveralRanksThatNothingConnectsAreRefused) {
  test::Random random;
  const auto problem = test::gpu_mesh_problem("none", static_cast<std::uint64_t>(random.integer(0, 1 << 30)));
  test::Differences differences;
  const auto run = [&](Communicator& world) {
    problem->expect_same_on(world, {.mesh = {2, 1, 1}}, differences, {.device = {Device::Kind::kCuda, 0}});
  };
  EXPECT_THROW(run_thread_ranks(2, run), Error);
}

}  // namespace
}  // namespace kvloom
