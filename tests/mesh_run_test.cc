// Whole training runs on meshes of ranks: loss curves, checkpoints that go on under another mesh.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstdio>
#include <map>

#include "core/checkpoint_reader.h"
#include "core/config.h"
#include "parallel/thread_ranks.h"
#include "tests/support/losses.h"
#include "tests/support/mpi_run.h"
#include "tests/support/random.h"
#include "tests/support/tiny_run.h"
#include "train/trainer.h"

namespace kvloom {
namespace {

using test::Losses;

struct MeshSetting {
  int data = 1;
  int pipeline = 1;
  int tensor = 1;
  bool sequence_parallel = false;
  bool shard_optimizer = false;

  int ranks() const { return data * pipeline * tensor; }
  std::vector<std::string> overrides() const {
    return {fmt::format("mesh.data={}", data), fmt::format("mesh.pipeline={}", pipeline),
            fmt::format("mesh.tensor={}", tensor), fmt::format("mesh.sequence_parallel={}", sequence_parallel),
            fmt::format("mesh.shard_optimizer={}", shard_optimizer)};
  }
  std::string text() const {
    return fmt::format("dp {} pp {} tp {}{}{}", data, pipeline, tensor, sequence_parallel ? " sp" : "",
                       shard_optimizer ? " zero" : "");
  }
};

using Asked = std::function<bool(int rank)>;  // whether the rank wants to stop

// A run of thread ranks in this process. `others_directory`: what every rank but the first takes for the output's.
Losses train(const test::TinyRun& run, const MeshSetting& setting, std::vector<std::string> overrides,
             Resume resume = Resume::kNo, const std::string& others_directory = "", const Asked& asked = {}) {
  for (const std::string& text : setting.overrides()) overrides.push_back(text);
  overrides.push_back("data.tokens=" + (run / "tokens.h5").string());
  overrides.emplace_back("output.checkpoint_every=10");
  const proto::RunConfig config = load_run_config(run / "run.pbtxt", overrides);
  Losses losses;
  run_thread_ranks(setting.ranks(), [&](Communicator& world) {
    omp_set_num_threads(1);
    proto::RunConfig own = config;
    if (world.rank() != 0 && !others_directory.empty()) own.mutable_output()->set_directory(others_directory);
    TrainerOptions options;
    options.resume = resume;
    options.stop_requested = [&, rank = world.rank()] { return asked && asked(rank); };
    options.observer = world.rank() == 0 ? &losses : nullptr;
    Trainer trainer(own, world, options);
    trainer.run();
  });
  return losses;
}

std::string into(const test::TinyRun& run, const std::string& directory) {
  return "output.directory=" + (run / directory).string();
}

void expect_close(const std::map<std::uint64_t, double>& actual, const std::map<std::uint64_t, double>& expected,
                  double tolerance, const std::string& what) {
  ASSERT_FALSE(actual.empty()) << what;
  for (const auto& [step, loss] : actual) EXPECT_NEAR(loss, expected.at(step), tolerance * expected.at(step)) << what;
}

MeshSetting random_mesh(test::Random& random) {
  MeshSetting setting;
  for (int doublings = static_cast<int>(random.integer(0, 3)); doublings > 0; --doublings) {
    int* axes[] = {&setting.data, &setting.pipeline, &setting.tensor};
    int& axis = *axes[random.integer(0, 2)];
    if (axis < 4 && (&axis != &setting.data || setting.data < 2)) axis *= 2;
  }
  setting.sequence_parallel = random.flip();
  setting.shard_optimizer = random.flip();
  return setting;
}

TEST(Reshard, ACheckpointGoesOnUnderAnyOtherMesh) {
  test::Random random;
  const test::TinyRun run;
  ASSERT_EQ(run.tokenized.status, 0) << run.tokenized.error;
  // As the run says, and with keys and values of two layers, a layer that owns W_K alone and no diagonal.
  const std::vector<std::string> apart = {"model.kv_map=0_3:0_2:3_3", "model.no_diagonal=true"};
  const Losses of_run = train(run, {}, {into(run, "unbroken")});
  const Losses of_apart = train(run, {}, {into(run, "apart"), apart[0], apart[1]});
  for (int pair = 0; pair < 14; ++pair) {
    const Losses& unbroken = pair < 8 ? of_run : of_apart;
    const MeshSetting first = random_mesh(random);
    const MeshSetting second = random_mesh(random);
    const std::string what = first.text() + " then " + second.text();
    std::printf("%s\n", what.c_str());
    const std::string directory = into(run, "pair" + std::to_string(pair));
    // Step 10 of 20: the schedule of the learning rate must be that of the whole run.
    std::vector<std::string> overrides = {directory};
    if (pair >= 8) overrides.insert(overrides.end(), apart.begin(), apart.end());
    const Losses before = train(run, first, overrides);
    std::filesystem::remove_all(run / ("pair" + std::to_string(pair)) / "step-00000020");
    const Losses after = train(run, second, overrides, Resume::kAuto);
    EXPECT_EQ(after.by_step.begin()->first, 11u) << what;
    expect_close(before.by_step, unbroken.by_step, 1e-4, what);
    expect_close(after.by_step, unbroken.by_step, 1e-4, what);
    expect_close(after.validation, unbroken.validation, 1e-4, what);
  }
}

TEST(Reshard, UnderTheSameMeshNotABitDiffers) {
  test::Random random;
  const test::TinyRun run;
  for (const MeshSetting& mesh : {MeshSetting{.data = 2, .pipeline = 2, .shard_optimizer = true},
                                  MeshSetting{.pipeline = 2, .tensor = 2, .sequence_parallel = true}}) {
    const std::string directory = "same" + std::to_string(mesh.tensor);
    const Losses whole = train(run, mesh, {into(run, directory)});
    std::filesystem::remove_all(run / directory / "step-00000020");
    const Losses rest = train(run, mesh, {into(run, directory)}, Resume::kAuto);
    for (const auto& [step, loss] : rest.by_step) EXPECT_EQ(loss, whole.by_step.at(step)) << mesh.text();
    EXPECT_EQ(rest.by_step.size(), 10u);
  }
}

TEST(Resume, EveryRankTakesTheCheckpointThatRankZeroChose) {
  const test::TinyRun run;
  const Losses whole = train(run, {.data = 2}, {into(run, "out")});
  std::filesystem::remove_all(run / "out" / "step-00000020");
  // Another rank sees no checkpoint, or another newest one than rank 0 does.
  train(run, {}, {into(run, "other"), "train.steps=12"});
  for (const char* others : {"none", "other"}) {
    const Losses rest = train(run, {.data = 2}, {into(run, "out")}, Resume::kAuto, (run / others).string());
    EXPECT_EQ(rest.by_step.size(), 10u) << others;
    for (const auto& [step, loss] : rest.by_step) EXPECT_EQ(loss, whole.by_step.at(step)) << others;
    std::filesystem::remove_all(run / "out" / "step-00000020");
  }
}

// Data ranks have 18 and 17 sequences to evaluate, which makes one batch more for the first. With two batches an
// evaluation, the questions are: two before the first step, one before it, two after it, and so on.
TEST(Stop, ByOneRankReachesAllInAnEvaluationAndNothingDiffersAfterwards) {
  const test::TinyRun run;
  ASSERT_EQ(run.kvloom({"tokenize", "--input", "text.txt", "--tokenizer", "bytes", "--valid-fraction", "0.3",
                        "--output", "held.h5"})
                .status,
            0);
  const MeshSetting mesh{.data = 2, .pipeline = 2};
  const auto words = [&](const std::string& directory) {
    return std::vector<std::string>{into(run, directory), "train.steps=3", "train.evaluate_every=1",
                                    "train.evaluation_sequences=35",
                                    "data.validation_tokens=" + (run / "held.h5").string()};
  };
  const Losses whole = train(run, mesh, words("whole"));
  ASSERT_EQ(whole.validation.size(), 4u);
  for (const int questions : {1, 2, 4, 5, 7}) {
    const std::string directory = "stopped" + std::to_string(questions);
    int count = 0;
    const Losses before = train(run, mesh, words(directory), Resume::kNo, "",
                                [&](int rank) { return rank == 3 && ++count == questions; });
    EXPECT_EQ(count, questions);
    const auto done = static_cast<std::uint64_t>(questions / 3);
    EXPECT_EQ(before.by_step.size(), done) << questions;
    if (done > 0) {
      const CheckpointReader saved(run / directory / fmt::format("step-{:08}", done));
      EXPECT_TRUE(saved.manifest().training().evaluation_pending()) << questions;
    }
    const Losses after = train(run, mesh, words(directory), Resume::kAuto);
    EXPECT_EQ(after.by_step.size(), 3 - done) << questions;
    for (const auto& [step, loss] : after.by_step) EXPECT_EQ(loss, whole.by_step.at(step)) << questions;
    for (const auto& [step, loss] : after.validation) EXPECT_EQ(loss, whole.validation.at(step)) << questions;
    EXPECT_EQ(after.validation.size(), done == 0 ? 4 : 4 - done) << questions;
    EXPECT_EQ(test::content_of(run / directory / "best"), test::content_of(run / "whole/best")) << questions;
  }
}

TEST(ZeroOne, GivesTheWeightsOfAWholeUpdate) {
  const test::TinyRun run;
  const Losses whole = train(run, {.data = 4}, {into(run, "whole"), "train.micro_batch=1"});
  const Losses shared = train(run, {.data = 4, .shard_optimizer = true}, {into(run, "shared"), "train.micro_batch=1"});
  expect_close(shared.by_step, whole.by_step, 1e-6, "losses");
  CheckpointReader one(run / "whole" / "step-00000020");
  CheckpointReader other(run / "shared" / "step-00000020");
  for (const proto::TensorEntry& tensor : one.manifest().tensors()) {
    const Shape shape(tensor.shape().begin(), tensor.shape().end());
    std::vector<float> left(static_cast<std::size_t>(element_count(shape)));
    std::vector<float> right(left.size());
    one.read(tensor.name(), DType::kF32, left.data());
    other.read(tensor.name(), DType::kF32, right.data());
    for (std::size_t i = 0; i < left.size(); ++i) ASSERT_NEAR(left[i], right[i], 1e-5) << tensor.name();
  }
}

double loss_in(const std::string& line) { return std::stod(line.substr(line.find("\"loss\":") + 7)); }

TEST(Mpirun, EveryMeshGivesOneRanksLossCurve) {
  if (!test::has_mpirun()) GTEST_SKIP() << "there is no mpirun";
  const test::TinyRun run;
  const std::vector<std::string> common = {"--set", "train.steps=30", "--set", "train.check_replicas_every=10"};
  ASSERT_EQ(run.train([&] {
                 auto words = common;
                 words.insert(words.end(), {"--set", "output.directory=one"});
                 return words;
               }())
                .status,
            0);
  const auto one = run.losses("one");
  ASSERT_EQ(one.size(), 30u);
  const std::vector<std::vector<std::string>> meshes = {{"2", "--tp", "2"},
                                                        {"2", "--pp", "2"},
                                                        {"4", "--pp", "4"},
                                                        {"4", "--tp", "2", "--pp", "2", "--sequence-parallel"},
                                                        {"4", "--dp", "2", "--pp", "2", "--zero"}};
  for (const std::vector<std::string>& mesh : meshes) {
    std::vector<std::string> words = {"mpirun",   "--allow-run-as-root", "--oversubscribe", "-n",
                                      mesh[0],    KVLOOM_BINARY,         "train",           "--config",
                                      "run.pbtxt"};
    words.insert(words.end(), mesh.begin() + 1, mesh.end());
    words.insert(words.end(), common.begin(), common.end());
    test::ProcessOptions options;
    options.folder = run.path();
    const test::ProcessResult result = test::run_process(words, options);
    ASSERT_EQ(result.status, 0) << result.error;
    const auto losses = run.losses("out");
    ASSERT_EQ(losses.size(), 30u);
    double largest = 0;
    for (std::size_t step = 0; step < one.size(); ++step) {
      largest = std::max(largest, std::abs(loss_in(losses[step]) / loss_in(one[step]) - 1));
      EXPECT_NEAR(loss_in(losses[step]), loss_in(one[step]), 1e-4 * loss_in(one[step])) << mesh[1] << " " << one[step];
    }
    std::printf("%s ranks, %s %s: losses differ by %.1e at most\n", mesh[0].c_str(), mesh[1].c_str(), mesh[2].c_str(),
                largest);
    std::filesystem::remove_all(run / "out");
  }
}

// Two stages that hold the tied embeddings share their updates among three data ranks each, whose sums MPI may
// form in another order for each owner.
TEST(Mpirun, CopiesOfAWeightStayTheSameOnThreeDataRanks) {
  if (!test::has_mpirun()) GTEST_SKIP() << "there is no mpirun";
  const test::TinyRun run;
  test::ProcessOptions options;
  options.folder = run.path();
  std::vector<std::string> words = {KVLOOM_BINARY, "train", "--config", "run.pbtxt", "--dp",
                                    "3",           "--pp",  "2",        "--zero"};
  for (const char* field : {"model.tied_embeddings=true", "train.check_replicas_every=1", "train.global_batch=6",
                            "train.micro_batch=1", "train.steps=10"}) {
    words.insert(words.end(), {"--set", field});
  }
  const test::ProcessResult result = test::run_process(test::mpirun(6, words), options);
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_EQ(run.losses("out").size(), 10u);
}

}  // namespace
}  // namespace kvloom
