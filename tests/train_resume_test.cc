// Runs that are interrupted go on as if they had not been.
#include <gtest/gtest.h>

#include <cmath>

#include "core/checkpoint_reader.h"
#include "tests/support/random.h"
#include "tests/support/sanitized.h"
#include "tests/support/tiny_run.h"

namespace kvloom {
namespace {

constexpr const char* kFinal = "step-00000020";

void expect_equal_tensors(const std::filesystem::path& a, const std::filesystem::path& b) {
  CheckpointReader first(a);
  CheckpointReader second(b);
  ASSERT_EQ(first.manifest().tensors_size(), second.manifest().tensors_size());
  for (const proto::TensorEntry& tensor : first.manifest().tensors()) {
    std::int64_t count = 1;
    for (const std::int64_t size : tensor.shape()) count *= size;
    std::vector<float> left(static_cast<std::size_t>(count));
    std::vector<float> right(left.size());
    first.read(tensor.name(), DType::kF32, left.data());
    second.read(tensor.name(), DType::kF32, right.data());
    EXPECT_EQ(left, right) << tensor.name();
  }
}

TEST(Resume, AfterManyKillsTheLossesAreThoseOfAnUninterruptedRun) {
  test::Random random;
  test::TinyRun run;
  ASSERT_EQ(run.tokenized.status, 0) << run.tokenized.error;
  const auto start = std::chrono::steady_clock::now();
  const test::ProcessResult whole = run.train({"--set", "output.directory=whole"});
  const auto length =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start).count();
  ASSERT_EQ(whole.status, 0) << whole.error;
  int killed = 0;
  const int rounds = test::repetitions(20, 6, "kills");
  for (int round = 0; round < rounds; ++round) {
    test::ProcessOptions options;
    options.signal = {SIGKILL, std::chrono::milliseconds(random.integer(0, length))};
    const test::ProcessResult result = run.train({"--resume", "auto"}, options);
    ASSERT_TRUE(result.status == 0 || result.status == -SIGKILL) << result.error;
    if (result.status == -SIGKILL) ++killed;
    if (result.status == 0) {  // begin anew, so that later rounds have something to kill
      EXPECT_EQ(run.losses("out"), run.losses("whole"));
      std::filesystem::remove_all(run / "out");
    }
  }
  EXPECT_GT(killed, 0);
  const test::ProcessResult last = run.train({"--resume", "auto"});
  ASSERT_EQ(last.status, 0) << last.error;
  EXPECT_EQ(run.losses("out").size(), 20u);
  EXPECT_EQ(run.losses("out"), run.losses("whole"));
  expect_equal_tensors(run / "out" / kFinal, run / "whole" / kFinal);
}

TEST(Resume, AfterStoppingOnPurposeNothingDiffers) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "output.directory=whole"}).status, 0);
  ASSERT_EQ(run.train({"--stop-after", "7"}).status, 0);
  EXPECT_EQ(run.losses("out").size(), 7u);
  ASSERT_EQ(run.train({"--resume", "auto"}).status, 0);
  EXPECT_EQ(run.losses("out"), run.losses("whole"));
  expect_equal_tensors(run / "out" / kFinal, run / "whole" / kFinal);
}

TEST(Resume, SigtermFinishesTheStepAndSaves) {
  test::TinyRun run;
  test::ProcessOptions options;
  options.signal = {SIGTERM, std::chrono::milliseconds(100)};
  options.signal_after = [&] { return !run.losses("out").empty(); };
  const test::ProcessResult stopped = run.train({"--set", "train.steps=100000"}, options);
  EXPECT_EQ(stopped.status, 0) << stopped.error;
  const std::size_t done = run.losses("out").size();
  EXPECT_GT(done, 0u);
  EXPECT_LT(done, 100000u);
  EXPECT_NE(stopped.error.find("--resume auto"), std::string::npos) << stopped.error;
}

TEST(Resume, AStepFolderThatIsNoWholeCheckpointDoesNotStopTheRun) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=4"}).status, 0);
  std::filesystem::remove(run / "out/step-00000004/manifest.pb");
  std::ofstream(run / "out/step-00000004/notes.txt") << "mine";
  const test::ProcessResult result = run.train({"--set", "train.steps=8", "--resume", "auto"});
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_NE(result.error.find("it is out/step-00000004.set-aside now"), std::string::npos) << result.error;
  EXPECT_EQ(test::content_of(run / "out/step-00000004.set-aside/notes.txt"), "mine");
  std::filesystem::remove(run / "out/step-00000008/manifest.pb");
  EXPECT_EQ(run.train({"--set", "train.steps=8", "--resume", "auto"}).status, 0);
  CheckpointReader(run / "out/step-00000008").verify_all();
}

TEST(Resume, OneTrainingAtATimeHasAnOutputDirectoryAndDeathGivesItBack) {
  test::TinyRun run;
  std::filesystem::create_directory(run / "beside");
  test::ProcessResult second;
  test::ProcessOptions options;
  options.signal = {SIGKILL, std::chrono::milliseconds(0)};
  options.signal_after = [&] {
    if (run.losses("out").empty()) return false;
    second = test::run_process({KVLOOM_BINARY, "train", "--config", "../run.pbtxt", "--resume", "auto", "--set",
                                "data.tokens=../tokens.h5", "--set", "output.directory=../out"},
                               {.folder = run / "beside"});
    return true;
  };
  const std::vector<std::string> for_long = {"--set", "train.steps=100000", "--set", "output.checkpoint_every=1000"};
  EXPECT_EQ(run.train(for_long, options).status, -SIGKILL);
  EXPECT_EQ(second.status, 2) << second.error;
  EXPECT_EQ(second.error_lines(), 1) << second.error;
  EXPECT_NE(second.error.find("'../out' is being trained into by process "), std::string::npos) << second.error;
  // What a killed save left goes with the next training.
  std::filesystem::create_directories(run / "out/.step-00000099.partial");
  EXPECT_EQ(run.train({"--resume", "auto", "--set", "train.steps=2"}).status, 0);
  EXPECT_FALSE(std::filesystem::exists(run / "out/.step-00000099.partial"));
}

double loss_in(const std::string& line) { return std::stod(line.substr(line.find("\"loss\":") + 7)); }

TEST(Ranks, TwoGiveTheLossesOfOne) {
  if (std::system("command -v mpirun >/dev/null 2>&1") != 0) GTEST_SKIP() << "there is no mpirun";
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "output.directory=one"}).status, 0);
  test::ProcessOptions options;
  options.folder = run.path();
  const test::ProcessResult two = test::run_process(
      {"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", KVLOOM_BINARY, "train", "--config", "run.pbtxt"},
      options);
  ASSERT_EQ(two.status, 0) << two.error;
  const auto one = run.losses("one");
  const auto both = run.losses("out");
  ASSERT_EQ(one.size(), 20u);
  ASSERT_EQ(both.size(), 20u);
  for (std::size_t step = 0; step < one.size(); ++step) {
    EXPECT_NEAR(loss_in(both[step]), loss_in(one[step]), 1e-4) << one[step];
  }
}

TEST(Ranks, AFailureTakesAllOfThemDownWithItsMessage) {
  if (std::system("command -v mpirun >/dev/null 2>&1") != 0) GTEST_SKIP() << "there is no mpirun";
  test::TinyRun run;
  test::ProcessOptions options;
  options.folder = run.path();
  const auto start = std::chrono::steady_clock::now();
  const test::ProcessResult result =
      test::run_process({"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", KVLOOM_BINARY, "train",
                         "--config", "run.pbtxt", "--set", "train.learning_rate=1e30"},
                        options);
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.error.find("not finite"), std::string::npos) << result.error;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

}  // namespace
}  // namespace kvloom
