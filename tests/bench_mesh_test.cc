// `kvloom bench train --mesh` end to end, on a model so small that its figures mean nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "core/cuda_stream.h"
#include "tests/support/mpi_run.h"
#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;

std::vector<std::string> bench(std::vector<std::string> words) {
  for (const char* word : {KVLOOM_BINARY, "bench", "train",           "--mesh", "--layers",      "4", "--hidden", "32",
                           "--ffn",       "48",    "--heads",         "4",      "--kv-heads",    "2", "--vocab",  "64",
                           "--context",   "16",    "--micro-batches", "4",      "--repetitions", "2"}) {
    words.emplace_back(word);
  }
  return words;
}

test::ProcessResult run(const std::vector<std::string>& words) {
  const TemporaryFolder folder;
  test::ProcessOptions options;
  options.folder = folder.path();
  return test::run_process(words, options);
}

// Every mesh beside the one rank, each step's time there, and tokens a second that fit the time.
void expect_figures(const std::string& output) {
  const auto json = nlohmann::json::parse(output);
  ASSERT_EQ(json["ranks"], 2);
  ASSERT_EQ(json["tokens_per_step"], 4 * 16);
  std::vector<std::string> names;
  for (const auto& mesh : json["meshes"]) {
    names.push_back(mesh["mesh"]);
    EXPECT_EQ(mesh["all_seconds"].size(), 2u);
    EXPECT_GT(mesh["seconds_per_step"], 0.0);
    EXPECT_GT(mesh["core_seconds"], 0.0);
    EXPECT_NEAR(mesh["tokens_per_second"].get<double>() * mesh["seconds_per_step"].get<double>(), 64, 1e-6);
    if (mesh["mesh"] == "one") continue;
    const auto& one = json["meshes"][0];
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_NEAR(mesh["all_relative_to_ideal"][i].get<double>(),
                  2 * mesh["all_seconds"][i].get<double>() / one["all_seconds"][i].get<double>(), 1e-6);
    }
  }
  EXPECT_EQ(names, (std::vector<std::string>{"one", "tp2", "pp2", "dp2"}));
}

TEST(BenchMesh, ThreadRanksGiveEveryMesh) {
  if (std::thread::hardware_concurrency() < 2) GTEST_SKIP() << "needs two cores";
  auto words = bench({});
  words.insert(words.end(), {"--json", "--map", "sandwich-top:3"});
  const test::ProcessResult result = run(words);
  ASSERT_EQ(result.status, 0) << result.error;
  expect_figures(result.output);
}

TEST(BenchMesh, RanksUnderMpirunGiveEveryMesh) {
  if (std::system("command -v mpirun >/dev/null 2>&1") != 0) GTEST_SKIP() << "there is no mpirun";
  if (std::thread::hardware_concurrency() < 2) GTEST_SKIP() << "needs two cores";
  auto words = bench({"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"});
  words.emplace_back("--json");
  const test::ProcessResult result = run(words);
  ASSERT_EQ(result.status, 0) << result.error;
  expect_figures(result.output);
}

TEST(BenchTrain, WhatTheDeviceLeavesAsideIsSaidOnceForAllMaps) {
  auto words = bench({});
  std::erase(words, "--mesh");
  words.resize(static_cast<std::size_t>(std::ranges::find(words, "--micro-batches") - words.begin()));
  for (const char* word : {"--maps", "none", "cla:2", "--steps", "1", "--matmul-precision", "tf32"}) {
    words.emplace_back(word);
  }
  const test::ProcessResult result = run(words);
  ASSERT_EQ(result.status, 0) << result.error;
  EXPECT_THAT(result.output, HasSubstr("cla:2"));
  EXPECT_THAT(result.error, HasSubstr("tf32"));
  EXPECT_EQ(result.error_lines(), 1) << result.error;
}

// Its default would be measured instead, or memory would run out.
TEST(BenchTrain, NumbersThatMeanNothingAreRefusedByFlag) {
  const std::vector<std::vector<std::string>> cases = {
      {"--micro-batch", "0"},
      {"--micro-batch", "-3"},
      {"--micro-batch", "1000000000000"},
      {"--mesh", "--micro-batches", "0"},
      {"--mesh", "--micro-batches", "1048576", "--micro-batch", "1048576"},
      {"--mesh", "--thread-ranks", "0"},
      {"--mesh", "--thread-ranks", "-1"},
      {"--mesh", "--repetitions", "0"},
      {"--steps", "0"},
      {"--passes-without-gradient", "-1"},
      {"--passes-with-gradient", "0"},
  };
  for (const std::vector<std::string>& words : cases) {
    std::vector<std::string> command = {KVLOOM_BINARY, "bench", "train"};
    command.insert(command.end(), words.begin(), words.end());
    const test::ProcessResult result = run(command);
    const std::string& flag = words[words[0] == "--mesh" ? 1 : 0];
    EXPECT_EQ(result.status, 2) << flag << ": " << result.error;
    EXPECT_THAT(result.error, HasSubstr(flag));
    EXPECT_EQ(result.error_lines(), 1) << result.error;
  }
}

TEST(BenchMesh, ThreadsAreNoRanksOfGpus) {
  auto words = bench({});
  words.insert(words.end(), {"--device", "cuda"});
  const test::ProcessResult result = run(words);
  EXPECT_EQ(result.status, 2) << result.error;
  EXPECT_EQ(result.error_lines(), 1) << result.error;
  EXPECT_THAT(result.error, HasSubstr("--device cuda: ranks on GPUs are processes; right is mpirun -n"));
  EXPECT_EQ(result.output, "");
}

TEST(BenchMesh, RanksOnGpusThatAreNotThereAreRefusedOnce) {
  if (cuda_presence().devices > 0) GTEST_SKIP() << "there is a GPU";
  if (std::system("command -v mpirun >/dev/null 2>&1") != 0) GTEST_SKIP() << "there is no mpirun";
  auto words = bench({"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"});
  words.insert(words.end(), {"--device", "cuda"});
  const test::ProcessResult result = run(words);
  EXPECT_EQ(result.status, 2) << result.error;
  EXPECT_EQ(test::count_of(result.error, "device: cuda:0: " + cuda_presence().reason), 1u) << result.error;
  EXPECT_EQ(result.output, "");
}

TEST(BenchMesh, HowAGpuComputesIsRefusedOnCores) {
  auto words = bench({});
  words.insert(words.end(), {"--matmul-precision", "tf32"});
  const test::ProcessResult result = run(words);
  EXPECT_EQ(result.status, 2) << result.error;
  EXPECT_EQ(result.error_lines(), 1) << result.error;
  EXPECT_THAT(result.error, HasSubstr("--matmul-precision tf32: --mesh measures ranks on CPU cores"));
}

TEST(BenchMesh, RanksWithoutACoreOrACutOfTheModelAreRefused) {
  auto words = bench({});
  words.insert(words.end(), {"--thread-ranks", "1"});
  const test::ProcessResult one = run(words);
  EXPECT_EQ(one.status, 2);
  EXPECT_THAT(one.error, HasSubstr("--thread-ranks: Value 1 not in range 2"));
  words.back() = std::to_string(std::thread::hardware_concurrency() + 1);
  const test::ProcessResult many = run(words);
  EXPECT_EQ(many.status, 2);
  EXPECT_THAT(many.error, HasSubstr("finds no core of its own"));
}

}  // namespace
}  // namespace kvloom
