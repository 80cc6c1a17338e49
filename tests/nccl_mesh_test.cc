// Every mesh trains on GPUs over NCCL as one rank does on the CPU; ranks that outnumber the GPUs share them
// (tests/support/nccl_ranks.h).
#include "tests/support/gpu_mesh.h"
#include "tests/support/nccl_ranks.h"

namespace kvloom {
namespace {

using test::nccl_world;

// The host's words travel over NCCL as well here: its communicators take the host's memory.
Communicator& world() { return *nccl_world()->communicator; }

class NcclMesh : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = test::nccl_unavailable(); !reason.empty()) GTEST_SKIP() << reason;
  }

  static std::uint64_t common_seed() {
    std::int64_t seed = static_cast<std::int64_t>(test::Random().seed() >> 16);
    world().broadcast(std::span(&seed, 1), 0);
    return static_cast<std::uint64_t>(seed);
  }

  // The same on all ranks, so that they go on, or stop, together.
  static bool failed_anywhere() {
    std::int32_t failed = HasFailure() ? 1 : 0;
    world().all_reduce(std::span(&failed, 1), Reduction::kMax);
    return failed != 0;
  }
};

TEST_F(NcclMesh, TrainsAsOneRankOnTheCpu) {
  const int ranks = world().size();
  if (ranks != 2 && ranks != 4) GTEST_SKIP() << "meshes of 2 and of 4 ranks, not " << ranks;
  const std::uint64_t seed = common_seed();
  RankDevice gpu;
  gpu.device = {Device::Kind::kCuda, nccl_world()->gpu};
  gpu.connect = connect_by_nccl({.limit = std::chrono::seconds(60)});
  test::Differences differences;
  std::vector<std::string> maps = test::gpu_mesh_maps();
  std::vector<test::MeshSetting> settings = test::gpu_mesh_settings(ranks);
  // Four that share a GPU take turns on it, each kernel that waits for another rank a whole turn: one of the maps, with
  // every second setting.
  const bool hurried = ranks > 2 && ranks > cuda_presence().devices;
  if (hurried) maps = {maps[seed % maps.size()]};
  for (const std::string& map : maps) {
    const auto problem = test::gpu_mesh_problem(map, seed);
    for (std::size_t i = hurried ? seed / 2 % 2 : 0; i < settings.size(); i += hurried ? 2 : 1) {
      problem->expect_same_on(world(), settings[i], differences, gpu);
      if (failed_anywhere()) return;
    }
  }
}

}  // namespace
}  // namespace kvloom

int main(int argc, char** argv) { return kvloom::test::nccl_main(argc, argv); }
