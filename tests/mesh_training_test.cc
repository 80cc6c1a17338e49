// Every mesh trains the same model: losses, gradients, norms and the weights after three AdamW steps of data, pipeline
// and tensor ranks against one rank's. Ranks are threads, or processes when mpirun starts this program.
#include <gtest/gtest.h>
#include <omp.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>

#include "parallel/world.h"
#include "tests/support/mesh_problem.h"
#include "tests/support/sanitized.h"

namespace kvloom {
namespace {

using test::Differences;
using test::MeshProblem;
using test::MeshSetting;

// Ends MPI after the last test. Null without mpirun.
Communicator* mpi_world() {
  static const LaunchEnvironment environment = launch_environment([](const char* name) { return std::getenv(name); });
  if (!environment.started_by_mpi) return nullptr;
  static World world(environment);
  return &world.communicator();
}

void run_ranks(int ranks, const std::function<void(Communicator&)>& body) {
  if (Communicator* world = mpi_world()) return body(*world);
  run_thread_ranks(ranks, [&](Communicator& world) {
    omp_set_num_threads(1);
    body(world);
  });
}

// The same on all of MPI's ranks, so that they go on, or stop, together.
bool anywhere(bool here) {
  std::int32_t value = here ? 1 : 0;
  if (Communicator* world = mpi_world()) world->all_reduce(std::span(&value, 1), Reduction::kMax);
  return value != 0;
}

std::uint64_t common_seed() {
  std::int64_t seed = static_cast<std::int64_t>(test::Random().seed() >> 16);
  if (Communicator* world = mpi_world()) world->broadcast(std::span(&seed, 1), 0);
  return static_cast<std::uint64_t>(seed);
}

proto::ModelConfig model_of(const std::string& map, test::Random& random) {
  proto::ModelConfig config = test::small_model(8, map, 3);
  config.set_context(MeshProblem::kPositions);
  config.set_heads(8);
  config.set_kv_heads(static_cast<std::uint32_t>(1 << random.integer(0, 3)));
  config.set_head_dim(4);
  config.set_qkv_bias(random.flip());
  config.set_qk_norm(random.flip());
  config.set_tied_embeddings(random.flip());
  config.set_no_diagonal(random.integer(0, 3) == 0);
  return config;
}

std::vector<std::string> maps_to_train(test::Random& random, int random_maps) {
  std::vector<std::string> maps;
  for (const std::string& name : test::nine_maps()) maps.push_back(name + ":3");
  maps.insert(maps.end(), {"none", "yoco", "0s_3_3s_3_5s_7_4_7", "fused-lite:4", "0s_5:1_2:5s_3:0_6_2:4_6:3_7"});
  for (int i = 0; i < random_maps; ++i) maps.push_back(test::random_map(random, 8, true));
  return maps;
}

// What was run, printed at the end with its count.
class RunList {
 public:
  void add(const MeshSetting& setting) { ++by_kind_[setting.kind()]; }
  ~RunList() {
    if (Communicator* world = mpi_world(); world != nullptr && world->rank() != 0) return;
    int runs = 0;
    for (const auto& [kind, count] : by_kind_) {
      std::printf("  %s: %d\n", kind.c_str(), count);
      runs += count;
    }
    std::printf("%d runs on %zu models (%d more were too ill-conditioned); largest differences: gradients %.1e, ", runs,
                models, refused, differences.gradients);
    std::printf("movement %.1e, weights %.1e\n", differences.movement, differences.weights);
  }

  Differences differences;
  std::size_t models = 0;
  int refused = 0;

 private:
  std::map<std::string, int> by_kind_;
};

// A model of the map which f32 determines well enough (tests/support/mesh_problem.h), solved.
std::unique_ptr<MeshProblem> problem_of(const std::string& map, test::Random& random, RunList& list) {
  for (int attempt = 0; attempt < 200; ++attempt) {
    const proto::ModelConfig model = model_of(map, random);
    auto problem = std::make_unique<MeshProblem>(model, static_cast<std::uint64_t>(random.integer(0, 1 << 30)));
    if (anywhere(problem->sensitivity() > test::kLargestSensitivity)) {
      ++list.refused;
      continue;
    }
    problem->solve();
    ++list.models;
    return problem;
  }
  fail("no well-conditioned model of map {}", map);
}

// False when it failed somewhere.
bool passes(const MeshProblem& problem, const MeshSetting& setting, RunList& list) {
  run_ranks(setting.mesh.size(),
            [&](Communicator& world) { problem.expect_same_on(world, setting, list.differences); });
  list.add(setting);
  return !anywhere(testing::Test::HasFailure());
}

// Every mesh of that many ranks; sequence parallel on and off; every schedule.
std::vector<MeshSetting> settings_of(int ranks) {
  std::vector<MeshSetting> settings;
  const auto with_schedules = [&](MeshSetting setting) {
    settings.push_back(setting);
    if (setting.mesh.pipeline == 1) return;
    setting.schedule = proto::MeshConfig::GPIPE;
    settings.push_back(setting);
    if (setting.mesh.pipeline > 4) return;
    setting.schedule = proto::MeshConfig::ONE_FORWARD_ONE_BACKWARD;
    setting.stages_per_rank = 2;
    settings.push_back(setting);
  };
  for (int tensor = 1; tensor <= ranks; tensor *= 2) {
    for (int pipeline = 1; tensor * pipeline <= ranks; pipeline *= 2) {
      const Mesh mesh{.data = ranks / tensor / pipeline, .pipeline = pipeline, .tensor = tensor};
      with_schedules({.mesh = mesh});
      if (tensor > 1) with_schedules({.mesh = mesh, .sequence_parallel = true});
    }
  }
  return settings;
}

// What is left to chance.
MeshSetting completed(MeshSetting setting, test::Random& random) {
  const int share = static_cast<int>(MeshProblem::kSequences) / setting.mesh.data;
  setting.micro_batches = std::min(share, 1 << random.integer(0, 2));
  setting.shard_optimizer = random.flip();
  setting.recompute = random.flip();
  return setting;
}

class EveryMesh : public ::testing::TestWithParam<int> {};

// Of each map every `stride`th setting, from another one on for each map: so each setting sees 32 / stride maps.
// KVLOOM_EVERY_SETTING=1 leaves none out.
TEST_P(EveryMesh, TrainsAsOneRank) {
  const int ranks = GetParam();
  Communicator* world = mpi_world();
  if (world != nullptr && world->size() != ranks) GTEST_SKIP() << "mpirun has started " << world->size() << " ranks";
  test::Random random(common_seed());
  RunList list;
  const std::vector<MeshSetting> settings = settings_of(ranks);
  const bool every = std::getenv("KVLOOM_EVERY_SETTING") != nullptr;
  const auto stride = static_cast<std::size_t>(every ? 1 : ranks >= 4 ? ranks : world == nullptr ? 1 : 3);
  std::size_t first = 0;
  for (const std::string& map : maps_to_train(random, world == nullptr ? test::repetitions(20, 0, "random maps") : 3)) {
    const auto problem = problem_of(map, random, list);
    for (std::size_t i = first++ % stride; i < settings.size(); i += stride) {
      if (!passes(*problem, completed(settings[i], random), list)) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, EveryMesh, ::testing::Values(1, 2, 4, 8));

std::string cut_at(const std::vector<int>& layers) {
  std::string text;
  for (const int layer : layers) text += (text.empty() ? "" : ",") + std::to_string(layer);
  return text;
}

// Every way to cut 8 layers into 2, 3 and 4 stages, and two stages a rank.
std::vector<MeshSetting> every_cut() {
  std::vector<MeshSetting> cuts;
  for (int a = 1; a < 8; ++a) {
    cuts.push_back({.mesh = {1, 2, 1}, .boundaries = cut_at({a})});
    for (int b = a + 1; b < 8; ++b) {
      cuts.push_back({.mesh = {1, 3, 1}, .boundaries = cut_at({a, b})});
      for (int c = b + 1; c < 8; ++c) {
        cuts.push_back({.mesh = {1, 4, 1}, .boundaries = cut_at({a, b, c})});
        cuts.push_back({.mesh = {1, 2, 1}, .stages_per_rank = 2, .boundaries = cut_at({a, b, c})});
      }
    }
  }
  return cuts;
}

TEST(EveryCut, TrainsAsOneRank) {
  if (mpi_world() != nullptr) GTEST_SKIP() << "ranks are threads here";
  test::Random random;
  RunList list;
  for (const std::string map : {"sandwich-top:3", "lasagna-middle:3", "pizza-bottom:3", "0s_3_3s_3_5s_7_4_7"}) {
    const auto problem = problem_of(map, random, list);
    const std::size_t stride = test::kSanitized ? 8 : 1;
    const std::vector<MeshSetting> cuts = every_cut();
    for (std::size_t i = 0; i < cuts.size(); i += stride) {
      MeshSetting setting = cuts[i];
      if (random.flip()) setting.schedule = proto::MeshConfig::GPIPE;
      if (!passes(*problem, completed(setting, random), list)) return;
    }
  }
}

}  // namespace
}  // namespace kvloom
