// `kvloom bench decode` end to end, on a model so small that its speeds mean nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/process.h"
#include "tests/support/sanitized.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// `more` besides or instead of these.
test::ProcessResult bench(const std::vector<std::string>& more) {
  const std::pair<const char*, const char*> usual[] = {
      {"--layers", "4"}, {"--hidden", "32"}, {"--ffn", "48"},        {"--heads", "4"},         {"--kv-heads", "2"},
      {"--vocab", "64"}, {"--steps", "3"},   {"--repetitions", "2"}, {"--prompt-tokens", "16"}};
  std::vector<std::string> words = {KVLOOM_BINARY, "bench", "decode"};
  for (const auto& [flag, value] : usual) {
    if (std::ranges::find(more, flag) == more.end()) words.insert(words.end(), {flag, value});
  }
  words.insert(words.end(), more.begin(), more.end());
  const TemporaryFolder folder;
  test::ProcessOptions options;
  options.folder = folder.path();
  return test::run_process(words, options);
}

// Of the model above in f32, with so many KV layers: its matrices and norms, and of the embedding the tokens' rows.
double weight_bytes(double kv_layers, double sequences) {
  const double layer = 2 * 32 * 32 + 3 * 32 * 48 + 2 * 32;
  return 4 * (4 * layer + kv_layers * 2 * 32 * 16 + 64 * 32 + 32 + sequences * 32);
}

// Of each map and batch: the cache of its KV layers, passes as its segments want, and the ratio that its own rates
// give.
TEST(BenchDecode, EveryMapAndBatchStandsBesideItsBound) {
  const test::ProcessResult result =
      bench({"--batch", "1", "3", "--maps", "none", "cla:2", "sandwich-top:2", "--passes", "3", "--json"});
  ASSERT_EQ(result.status, 0) << result.error;
  const auto json = nlohmann::json::parse(result.output);
  const double memory = json["memory_bytes_per_second"];
  const double products = json["products_flops_per_second"];
  ASSERT_GT(memory, 0);
  ASSERT_GT(products, 0);
  ASSERT_EQ(json["runs"].size(), 6u);
  const double kv_layers[] = {4, 2, 2};
  const int passes[] = {1, 1, 3};
  for (std::size_t i = 0; i < 6; ++i) {
    const auto& run = json["runs"][i];
    const double sequences = i % 2 == 0 ? 1 : 3;
    EXPECT_EQ(run["sequences"], sequences);
    EXPECT_EQ(run["prefill_passes"], passes[i / 2]);
    EXPECT_EQ(run["cache_bytes"], kv_layers[i / 2] * sequences * 16 * 2 * 2 * 8 * 4) << run;
    EXPECT_DOUBLE_EQ(run["cache_relative"], kv_layers[i / 2] / 4);
    // The timed steps stand at positions 18 to 20 and see one more each; two layers of sandwich-top:2 read
    // upward and do not see their own.
    const double seen = i / 2 < 2 ? 4 * 20 : 4 * 20 - 2;
    EXPECT_NEAR(run["key_value_bytes_per_step"].get<double>(), sequences * seen * 2 * 2 * 8 * 4, 1e-6);
    EXPECT_EQ(run["weight_bytes_per_step"], weight_bytes(kv_layers[i / 2], sequences));
    const double seconds = run["seconds_per_step"];
    const double bytes = run["weight_bytes_per_step"].get<double>() + run["key_value_bytes_per_step"].get<double>();
    const double flops = run["flops_per_step"];
    EXPECT_NEAR(run["ratio_to_bound"].get<double>() * seconds, std::max(bytes / memory, flops / products), 1e-9);
    EXPECT_EQ(run["bound_by"], bytes / memory >= flops / products ? "memory" : "products");
    EXPECT_NEAR(run["decode_tokens_per_second"].get<double>() * seconds, sequences, 1e-9);
    EXPECT_NEAR(run["prefill_tokens_per_second"].get<double>() * run["prefill_seconds"].get<double>(), 16 * sequences,
                1e-6);
    const double first = json["runs"][i % 2]["seconds_per_step"];
    EXPECT_NEAR(run["decode_relative"].get<double>(), first / seconds, 1e-6);
  }
}

TEST(BenchDecode, ATableHasARowForEachMapAndBatch) {
  const test::ProcessResult result =
      bench({"--batch", "1", "2", "--maps", "none", "0_0s_2_2s", "--window", "4", "--precision", "bf16"});
  ASSERT_EQ(result.status, 0) << result.error;
  EXPECT_THAT(result.output, HasSubstr("prompts of 16 tokens, then 3 steps, bf16"));
  EXPECT_EQ(std::ranges::count(result.output, '\n'), 2 + 4) << result.output;
  EXPECT_THAT(result.output, HasSubstr("0_0s_2_2s"));
}

// 2^47 bytes and some: more than any process can address.
TEST(BenchDecode, ABatchTooLargeForTheMemoryIsNamedInItsPlace) {
  if (test::kSanitized) GTEST_SKIP() << "a sanitizer's allocator ends the process";
  const test::ProcessResult result = bench({"--batch", "1048576", "--prompt-tokens", "2097152", "--maps", "none"});
  EXPECT_EQ(result.status, 1) << result.error;
  EXPECT_THAT(result.output, HasSubstr("none                   1048576 cpu: out of memory"));
  EXPECT_THAT(result.output, HasSubstr("worked on at once: --batch or --prompt-tokens\n"));
  EXPECT_THAT(result.output, Not(HasSubstr("micro_batch")));
  EXPECT_THAT(result.error, HasSubstr("bench decode: 1 of 1 could not be measured"));
}

TEST(BenchDecode, MapsThatNobodyNamedFitTheLayers) {
  const test::ProcessResult result = bench({"--batch", "1", "--layers", "2"});
  ASSERT_EQ(result.status, 0) << result.error;
  EXPECT_THAT(result.output, HasSubstr("pizza-bottom:1"));
}

TEST(BenchDecode, WhatCannotBeMeasuredIsRefusedBeforeAnythingIs) {
  struct Case {
    std::vector<std::string> words;
    const char* says;
  };
  const Case cases[] = {
      {{"--batch", "0"}, "--batch: Value 0"},
      {{"--steps", "0"}, "--steps: Value 0"},
      {{"--passes", "0"}, "--passes: Value 0"},
      {{"--repetitions", "0"}, "--repetitions: "},
      {{"--prompt-tokens", "0"}, "--prompt-tokens: Value 0"},
      {{"--maps", "none", "nonsense:2"}, "nonsense:2"},
      {{"--maps", "none", "5_5_5_5"}, "layer 0 reads layer 5"},
      {{"--device", "gpu"}, "gpu"},
      {{"--cuda-graphs", "perhaps"}, "--cuda-graphs"},
  };
  for (const Case& one : cases) {
    const test::ProcessResult result = bench(one.words);
    EXPECT_EQ(result.status, 2) << one.words.front() << ": " << result.error;
    EXPECT_THAT(result.error, HasSubstr(one.says));
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    EXPECT_EQ(result.output, "");
  }
}

}  // namespace
}  // namespace kvloom
