// Which meshes are tried on GPUs: each axis alone, all of them together, and what goes with them, for one model at a
// time.
#pragma once

#include <omp.h>

#include <string>
#include <vector>

#include "kernels/error.h"
#include "tests/support/mesh_problem.h"

namespace kvloom::test {

// Of 2 and of 4 ranks.
inline std::vector<MeshSetting> gpu_mesh_settings(int ranks) {
  if (ranks == 2) {
    return {{.mesh = {2, 1, 1}, .shard_optimizer = true, .micro_batches = 2},
            {.mesh = {1, 2, 1}, .recompute = true, .micro_batches = 2},
            {.mesh = {1, 2, 1}, .stages_per_rank = 2, .micro_batches = 2},
            {.mesh = {1, 1, 2}, .micro_batches = 2},
            {.mesh = {1, 1, 2}, .sequence_parallel = true, .micro_batches = 2}};
  }
  return {{.mesh = {4, 1, 1}},
          {.mesh = {1, 4, 1}, .micro_batches = 4},
          {.mesh = {1, 1, 4}},
          {.mesh = {1, 2, 2}, .sequence_parallel = true, .micro_batches = 2},
          {.mesh = {2, 1, 2}, .shard_optimizer = true, .micro_batches = 2}};
}

// A model of the map with two KV heads, tied embeddings and norms of heads, which f32 determines well enough, solved;
// the same wherever the seed is. Upward and downward reads, windows among them, go across every cut.
inline std::unique_ptr<MeshProblem> gpu_mesh_problem(const std::string& map, std::uint64_t seed) {
  proto::ModelConfig model = small_model(8, map, 3);
  model.set_context(MeshProblem::kPositions);
  model.set_heads(4);
  model.set_kv_heads(2);
  model.set_head_dim(4);
  model.set_qkv_bias(true);
  model.set_qk_norm(true);
  model.set_tied_embeddings(true);
  for (std::uint64_t attempt = 0; attempt < 200; ++attempt) {
    auto problem = std::make_unique<MeshProblem>(model, seed + attempt);
    if (problem->sensitivity() > kLargestSensitivity) continue;
    problem->solve();
    return problem;
  }
  fail("no well-conditioned model of map {}", map);
}

inline std::vector<std::string> gpu_mesh_maps() { return {"sandwich-middle:3", "0s_3_3s_3_5s_7_4_7"}; }

// Ranks that are threads train one of the maps with every second setting as one rank does on the CPU: from run to run
// all of them.
inline void expect_meshes_train(int ranks, const RankDevice& device) {
  Random random;
  Differences differences;
  const std::string map = gpu_mesh_maps()[static_cast<std::size_t>(random.integer(0, 1))];
  const auto problem = gpu_mesh_problem(map, static_cast<std::uint64_t>(random.integer(0, 1 << 30)));
  const std::vector<MeshSetting> settings = gpu_mesh_settings(ranks);
  for (auto i = static_cast<std::size_t>(random.integer(0, 1)); i < settings.size(); i += 2) {
    run_thread_ranks(settings[i].mesh.size(), [&](Communicator& world) {
      omp_set_num_threads(1);
      problem->expect_same_on(world, settings[i], differences, device);
    });
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace kvloom::test
