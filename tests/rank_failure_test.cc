// Ranks under mpirun that die, fail or are asked to stop: the others end within seconds, the output says which rank and
// why, and the run goes on from its checkpoint.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "core/checkpoint_folder.h"
#include "tests/support/mpi_run.h"
#include "tests/support/random.h"
#include "tests/support/tiny_run.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using Words = std::vector<std::string>;

constexpr test::Milliseconds kTenSeconds{10000};

class RankFailure : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!test::has_mpirun()) GTEST_SKIP() << "there is no mpirun";
    ASSERT_EQ(run_.tokenized.status, 0) << run_.tokenized.error;
  }

  // `kvloom train` without an end.
  static Words endless(const Words& more) {
    Words words = {KVLOOM_BINARY, "train",
                   "--config",    "run.pbtxt",
                   "--set",       "train.steps=1000000",
                   "--set",       "train.micro_batch=1",
                   "--set",       "train.evaluate_every=0",
                   "--set",       "output.checkpoint_every=10"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  test::ProcessResult run(int ranks, const Words& words, test::ProcessOptions options = {}) const {
    options.folder = run_.path();
    return test::run_process(test::mpirun(ranks, words), options);
  }

  // A signal once `steps` are done.
  test::ProcessOptions after_steps(int signal, std::size_t steps) const {
    test::ProcessOptions options;
    options.signal = {signal, test::Milliseconds(0)};
    options.signal_after = [this, steps] { return run_.losses("out").size() >= steps; };
    return options;
  }

  std::uint64_t last_step(const std::string& directory = "out") const {
    const LatestCheckpoint latest = latest_checkpoint(run_ / directory);
    return latest.place.has_value() ? latest.place->step : 0;
  }

  Words a_mesh_of_four() {
    const std::vector<Words> meshes = {
        {"--pp", "4"}, {"--tp", "2", "--pp", "2"}, {"--dp", "4", "--zero"}, {"--dp", "2", "--pp", "2"}};
    return meshes[static_cast<std::size_t>(random_.integer(0, 3))];
  }

  test::Random random_;
  test::TinyRun run_;
};

double loss_in(const std::string& line) { return std::stod(line.substr(line.find("\"loss\":") + 7)); }

TEST_F(RankFailure, OneKilledOfFourIsNamedTheOthersEndAndTwoGoOn) {
  const Words mesh = a_mesh_of_four();
  const auto victim = static_cast<int>(random_.integer(0, 3));
  SCOPED_TRACE(testing::PrintToString(mesh) + ", rank " + std::to_string(victim));
  std::map<int, pid_t> ranks;
  test::ProcessOptions options = after_steps(SIGKILL, 11);
  options.signal_to = [&](pid_t mpirun) {
    ranks = test::ranks_of(mpirun);
    return ranks.contains(victim) ? ranks.at(victim) : -1;
  };
  const test::ProcessResult killed = run(4, endless(mesh), options);
  ASSERT_EQ(ranks.size(), 4u);
  EXPECT_NE(killed.status, 0);
  EXPECT_LT(killed.after_signal, kTenSeconds);
  EXPECT_THAT(killed.error, HasSubstr("process rank " + std::to_string(victim))) << "no word of who died";
  // mpirun may be gone a moment before those that it has killed.
  const auto end = std::chrono::steady_clock::now() + kTenSeconds - killed.after_signal;
  for (const auto& [rank, process] : ranks) {
    const auto runs = [&] { return test::stat_of(std::to_string(process)).runs(); };
    while (runs() && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(test::Milliseconds(20));
    EXPECT_FALSE(runs()) << "rank " << rank << " lives on";
  }

  // From the same checkpoint, two ranks do what one does.
  const std::uint64_t saved = last_step();
  ASSERT_GE(saved, 10u);
  std::filesystem::copy(run_ / "out", run_ / "one", std::filesystem::copy_options::recursive);
  const std::string until = std::to_string(saved + 5);
  const Words axis = random_.flip() ? Words{"--tp", "2"} : Words{"--pp", "2"};
  Words words = endless({"--resume", "auto", "--stop-after", until});
  words.insert(words.end(), axis.begin(), axis.end());
  const test::ProcessResult two = run(2, words);
  ASSERT_EQ(two.status, 0) << two.error;
  const test::ProcessResult one =
      run(1, endless({"--resume", "auto", "--stop-after", until, "--set", "output.directory=one"}));
  ASSERT_EQ(one.status, 0) << one.error;
  EXPECT_EQ(last_step(), saved + 5);
  const auto losses = run_.losses("out");
  const auto expected = run_.losses("one");
  ASSERT_EQ(losses.size(), saved + 5);
  ASSERT_EQ(expected.size(), saved + 5);
  for (std::size_t step = saved; step < losses.size(); ++step) {
    EXPECT_NEAR(loss_in(losses[step]), loss_in(expected[step]), 1e-3 * loss_in(expected[step])) << losses[step];
  }
}

TEST_F(RankFailure, OneThatCannotReadItsDataTakesAllDownWithItsMessageOnce) {
  Words words = endless({"--dp", "4"});
  words.insert(words.end(), {":", "-n", "1"});
  const Words wrong = endless({"--dp", "4", "--set", "data.tokens=missing.h5"});
  words.insert(words.end(), wrong.begin(), wrong.end());
  // From its word on: mpirun's start takes as long as the machine is busy.
  test::ProcessOptions options;
  options.signal = {0, test::Milliseconds(0)};
  options.signal_after = [this] {
    return test::content_of(run_ / "stderr.txt").find("missing.h5") != std::string::npos;
  };
  const test::ProcessResult result = run(3, words, options);
  EXPECT_LT(result.after_signal, kTenSeconds);
  EXPECT_EQ(result.status, 2) << result.error;
  EXPECT_EQ(test::count_of(result.error, "rank 3: cannot open missing.h5"), 1u) << result.error;
  EXPECT_EQ(test::count_of(result.error, "missing.h5"), 1u) << result.error;
}

TEST_F(RankFailure, OneThatCannotSaveTakesAllDownWithItsMessageOnce) {
  // The third of four stages writes its shard to a folder that is not there.
  Words words = endless({"--pp", "4"});
  for (const char* directory : {"nowhere", "out"}) {
    const Words more = endless({"--pp", "4", "--set", std::string("output.directory=") + directory});
    words.insert(words.end(), {":", "-n", "1"});
    words.insert(words.end(), more.begin(), more.end());
  }
  const test::ProcessResult result = run(2, words, after_steps(0, 9));
  EXPECT_LT(result.after_signal, kTenSeconds);
  EXPECT_EQ(result.status, 1) << result.error;
  EXPECT_EQ(test::count_of(result.error, "rank 2: "), 1u) << result.error;
  EXPECT_THAT(result.error, HasSubstr("nowhere"));
  EXPECT_EQ(last_step(), 0u) << "a checkpoint without one rank's shard";
}

TEST_F(RankFailure, WhatEveryRankFindsWrongIsSaidOnce) {
  const test::ProcessResult diverged =
      run(4, endless({"--dp", "2", "--pp", "2", "--set", "train.learning_rate=1e30"}), after_steps(0, 1));
  EXPECT_LT(diverged.after_signal, kTenSeconds);
  EXPECT_EQ(diverged.status, 1) << diverged.error;
  EXPECT_EQ(test::count_of(diverged.error, "not finite"), 1u) << diverged.error;
  EXPECT_THAT(diverged.error, HasSubstr("rank 0: "));

  const test::ProcessResult refused = run(4, endless({"--tp", "3"}));
  EXPECT_EQ(refused.status, 2) << refused.error;
  EXPECT_EQ(test::count_of(refused.error, "does not divide a world of 4"), 1u) << refused.error;

  const test::ProcessResult one_gpu = run(2, endless({"--device", "cuda:1"}));
  EXPECT_EQ(one_gpu.status, 2) << one_gpu.error;
  EXPECT_EQ(test::count_of(one_gpu.error, "cuda:1: 2 ranks"), 1u) << one_gpu.error;

  const test::ProcessResult no_config = run(4, {KVLOOM_BINARY, "train", "--config", "none.pbtxt"});
  EXPECT_EQ(no_config.status, 2) << no_config.error;
  EXPECT_EQ(test::count_of(no_config.error, "none.pbtxt"), 1u) << no_config.error;
}

TEST_F(RankFailure, RankZeroChoosesTheWeightsToStartFrom) {
  ASSERT_EQ(run_.train({"--set", "train.steps=2", "--set", "output.directory=first"}).status, 0);
  // Words of two ranks, of which the second is told something else.
  const auto start = [&](const std::string& zero, const std::string& one) {
    const Words common = {"--dp", "2", "--stop-after", "2", "--set", "train.check_replicas_every=1", "--set"};
    Words words = endless(common);
    words.push_back("train.start_from=" + zero);
    words.insert(words.end(), {":", "-n", "1"});
    const Words other = endless(common);
    words.insert(words.end(), other.begin(), other.end());
    words.push_back("train.start_from=" + one);
    return run(1, words);
  };
  const test::ProcessResult chosen = start("first", "none");
  EXPECT_EQ(chosen.status, 0) << chosen.error;
  EXPECT_EQ(last_step(), 2u);
  const test::ProcessResult refused = start("none", "first");
  EXPECT_EQ(refused.status, 2) << refused.error;
  EXPECT_EQ(test::count_of(refused.error, "rank 0: train.start_from: 'none' is no checkpoint"), 1u) << refused.error;

  Words other_seed = endless({"--dp", "2", "--resume", "auto", "--set", "train.seed=4"});
  const test::ProcessResult not_the_same = run(2, other_seed);
  EXPECT_EQ(not_the_same.status, 2) << not_the_same.error;
  EXPECT_EQ(test::count_of(not_the_same.error, "rank 0: train.seed: 4; "), 1u) << not_the_same.error;
  EXPECT_EQ(test::count_of(not_the_same.error, "train.seed"), 1u) << not_the_same.error;
}

// mpirun passes SIGUSR1 on; it does not pass on SIGTERM, but one rank that gets it stops all of them.
TEST_F(RankFailure, AskedToStopAllSaveAndExitWithZero) {
  const auto victim = static_cast<int>(random_.integer(0, 3));
  for (const int signal : {SIGUSR1, SIGTERM}) {
    std::filesystem::remove_all(run_ / "out");
    test::ProcessOptions options = after_steps(signal, 3);
    if (signal == SIGTERM) {
      options.signal_to = [&](pid_t mpirun) { return test::ranks_of(mpirun).at(victim); };
    }
    const test::ProcessResult stopped = run(4, endless(a_mesh_of_four()), options);
    EXPECT_EQ(stopped.status, 0) << stopped.error;
    EXPECT_THAT(stopped.error, HasSubstr("stopped; go on with --resume auto"));
    EXPECT_EQ(last_step(), run_.losses("out").size());
    EXPECT_GE(last_step(), 3u);
  }
}

}  // namespace
}  // namespace kvloom
