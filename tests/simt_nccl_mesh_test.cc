// Every mesh trains over NCCL as one rank does on the CPU, without a GPU: ranks are threads, and support/simt and
// support/nccl_threads stand for CUDA and NCCL. The host's words go by the threads' own world, as they go by MPI's.
#include <omp.h>

#include "tests/support/gpu_mesh.h"

namespace kvloom {
namespace {

class NcclMeshOfThreads : public ::testing::TestWithParam<int> {};

TEST_P(NcclMeshOfThreads, TrainsAsOneRankOnTheCpu) {
  test::Random random;
  RankDevice device;
  device.device = {Device::Kind::kCuda, 0};
  device.connect = connect_by_nccl({.limit = std::chrono::seconds(60)});
  test::Differences differences;
  // One of the maps with every second setting: from run to run all of them.
  const std::vector<std::string> maps = test::gpu_mesh_maps();
  const std::string& map = maps[static_cast<std::size_t>(random.integer(0, 1))];
  const auto problem = test::gpu_mesh_problem(map, static_cast<std::uint64_t>(random.integer(0, 1 << 30)));
  const std::vector<test::MeshSetting> settings = test::gpu_mesh_settings(GetParam());
  for (auto i = static_cast<std::size_t>(random.integer(0, 1)); i < settings.size(); i += 2) {
    run_thread_ranks(settings[i].mesh.size(), [&](Communicator& world) {
      omp_set_num_threads(1);
      problem->expect_same_on(world, settings[i], differences, device);
    });
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, NcclMeshOfThreads, ::testing::Values(2, 4));

}  // namespace
}  // namespace kvloom
