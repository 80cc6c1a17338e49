// What several ranks of one model hold stays the same to the last bit, though reductions add in any order: tied
// embeddings of two stages, K and V projections that tensor ranks share, norms. One that drifts is found and named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <map>
#include <vector>

#include "core/config.h"
#include "parallel/pipeline.h"
#include "parallel/thread_ranks.h"
#include "tests/support/losses.h"
#include "tests/support/model_fixture.h"
#include "tests/support/rotated_sums.h"
#include "tests/support/tiny_run.h"
#include "train/replica_check.h"
#include "train/trainer.h"

namespace kvloom {
namespace {

using test::Losses;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Words = std::vector<std::string>;

struct CopiesMesh {
  const char* name;
  Words overrides;
};

// Three data ranks of two. Odd sizes, so that the ranks of a model share out their updates at other places.
std::vector<CopiesMesh> meshes_with_copies() {
  return {{"TiedOverStages", {"mesh.pipeline=2", "model.tied_embeddings=true"}},
          {"SharedKeyValueHeads",
           {"mesh.tensor=2", "model.kv_heads=1", "model.ffn=49", "model.qk_norm=true", "model.qkv_bias=true"}}};
}

class Copies : public ::testing::TestWithParam<CopiesMesh> {
 protected:
  // Every rank's losses, of ranks that add in rotated orders and compare their copies after each step.
  std::vector<Losses> train(const Words& more, Resume resume) const {
    Words overrides = GetParam().overrides;
    overrides.insert(overrides.end(),
                     {"mesh.data=3", "train.global_batch=6", "train.micro_batch=1", "train.check_replicas_every=1",
                      "train.evaluate_every=1", "train.evaluation_sequences=7", "train.steps=8",
                      "output.checkpoint_every=4", "output.keep=0", "data.tokens=" + (run_ / "tokens.h5").string(),
                      "output.directory=" + (run_ / "out").string()});
    overrides.insert(overrides.end(), more.begin(), more.end());
    const proto::RunConfig config = load_run_config(run_ / "run.pbtxt", overrides);
    std::vector<Losses> losses(6);
    run_thread_ranks(6, [&](Communicator& world) {
      omp_set_num_threads(1);
      test::RotatedSums rotated(world);
      TrainerOptions options;
      options.resume = resume;
      options.observer = &losses[static_cast<std::size_t>(world.rank())];
      Trainer trainer(config, rotated, options);
      trainer.run();
    });
    return losses;
  }

  test::TinyRun run_;
};

// By the validation loss each rank decides for itself whether a checkpoint is the best.
TEST_P(Copies, KeepEveryBitAndEveryRankSeesTheSameValidationLoss) {
  const std::vector<Losses> losses = train({}, Resume::kNo);
  EXPECT_EQ(losses.front().by_step.size(), 8u);
  for (const Losses& rank : losses) EXPECT_EQ(rank.validation, losses.front().validation);
}

TEST_P(Copies, KeepEveryBitWhenUpdatesAreSharedAndSoDoesARunThatGoesOn) {
  const Words zero = {"mesh.shard_optimizer=true"};
  const std::vector<Losses> whole = train(zero, Resume::kNo);
  for (int step = 5; step <= 8; ++step) std::filesystem::remove_all(run_ / fmt::format("out/step-{:08}", step));
  const std::vector<Losses> rest = train(zero, Resume::kAuto);
  ASSERT_EQ(rest.front().by_step.size(), 4u);
  for (const auto& [step, loss] : rest.front().by_step) EXPECT_EQ(loss, whole.front().by_step.at(step)) << step;
}

INSTANTIATE_TEST_SUITE_P(OfAModel, Copies, ::testing::ValuesIn(meshes_with_copies()),
                         [](const auto& mesh) { return std::string(mesh.param.name); });

// What check_replicas says when `name` differs by a last bit on `rank` alone.
std::string found(const Mesh& mesh, int rank, const std::string& name) {
  proto::ModelConfig message = test::small_model(4, "none", 1);
  message.set_heads(4);
  message.set_kv_heads(1);
  message.set_tied_embeddings(true);
  const StageLayout layout = StageLayout::even(4, mesh.pipeline);
  try {
    run_thread_ranks(mesh.size(), [&](Communicator& world) {
      MeshRanks ranks(world, mesh);
      CachingCpuAllocator allocator;
      Model model(ModelConfig::from_proto(message),
                  pipeline_shard(layout, ranks.place().pipeline, ranks.place().tensor, mesh.tensor), DType::kF32,
                  allocator);
      model.initialize(1);
      check_replicas(ranks, model, 3);
      if (world.rank() == rank) {
        float& weight = model.master().view(model.layout().at(name).offset, {1}).as<float>()[0];
        weight = std::nextafter(weight, 2.0f);
      }
      check_replicas(ranks, model, 4);
    });
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing";
}

TEST(ReplicaCheck, NamesTheDataRanksAndTheTensorThatDiffer) {
  EXPECT_THAT(found({2, 2, 1}, 3, "model.layers.2.input_layernorm.weight"),
              AllOf(HasSubstr("rank 1 (data rank 0) and rank 3 (data rank 1) differ in 1 of"),
                    HasSubstr("model.layers.2.input_layernorm.weight")));
}

TEST(ReplicaCheck, NamesTheStagesWhoseTiedEmbeddingsDiffer) {
  EXPECT_THAT(found({1, 2, 2}, 3, "model.embed_tokens.weight"),
              AllOf(HasSubstr("rank 1 (pipeline rank 0, tensor rank 1) and rank 3 (pipeline rank 1, tensor rank 1)"),
                    HasSubstr("first model.embed_tokens.weight")));
}

TEST(ReplicaCheck, NamesTheTensorRanksWhoseKeyAndValueProjectionsDiffer) {
  EXPECT_THAT(found({1, 1, 4}, 2, "model.layers.1.self_attn.v_proj.weight"),
              AllOf(HasSubstr("rank 0 (pipeline rank 0, tensor rank 0) and rank 2 (pipeline rank 0, tensor rank 2)"),
                    HasSubstr("first model.layers.1.self_attn.v_proj.weight")));
}

// Alters the last bit of a weight once a step is done.
class Tamperer final : public TrainObserver {
 public:
  explicit Tamperer(std::uint64_t step) : step_(step) {}
  void on_start(const TrainStart& start) override { model_ = &start.model; }
  void on_step(const StepReport& report) override {
    if (report.step != step_) return;
    float& weight = model_->master().view(model_->layout().at("model.norm.weight").offset, {1}).as<float>()[0];
    weight = std::nextafter(weight, 2.0f);
  }
  void on_evaluation(const EvaluationReport&) override {}
  void on_checkpoint(std::uint64_t, const std::string&) override {}

 private:
  std::uint64_t step_;
  const Model* model_ = nullptr;
};

// What ends a run of four steps on two data ranks, of which one is altered after step 1; "" if nothing does.
std::string ended_by(std::uint32_t check_every) {
  const test::TinyRun run;
  const Words overrides = {"mesh.data=2",
                           "train.steps=4",
                           "train.evaluate_every=0",
                           fmt::format("train.check_replicas_every={}", check_every),
                           "data.tokens=" + (run / "tokens.h5").string(),
                           "output.directory=" + (run / "out").string()};
  const proto::RunConfig config = load_run_config(run / "run.pbtxt", overrides);
  try {
    run_thread_ranks(2, [&](Communicator& world) {
      omp_set_num_threads(1);
      Tamperer tamperer(1);
      TrainerOptions options;
      if (world.rank() == 1) options.observer = &tamperer;
      Trainer trainer(config, world, options);
      trainer.run();
    });
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(ReplicaCheck, StopsARunWhoseReplicaWasAltered) {
  EXPECT_EQ(ended_by(0), "");
  EXPECT_EQ(ended_by(5), "");  // never due
  for (const std::uint32_t every : {1, 2, 3}) {
    EXPECT_THAT(ended_by(every), AllOf(HasSubstr("rank 0 (data rank 0) and rank 1 (data rank 1) differ"),
                                       HasSubstr("model.norm.weight")))
        << every;
  }
}

}  // namespace
}  // namespace kvloom
