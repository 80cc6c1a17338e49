// kvloom eval --data: what is printed is what was scored and what ran.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "data/dataset.h"
#include "data/token_file.h"
#include "infer/tokenizer.h"
#include "kernels/cross_entropy.h"
#include "tests/support/huggingface_folder.h"
#include "tests/support/tiny_run.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using Words = std::vector<std::string>;

nlohmann::json evaluated(const test::TinyRun& run, Words more) {
  Words words = {"eval", "--checkpoint", "out", "--data", "pieces.h5", "--json"};
  words.insert(words.end(), more.begin(), more.end());
  const test::ProcessResult result = run.kvloom(words);
  EXPECT_EQ(result.status, 0) << result.error;
  return nlohmann::json::parse(result.output);
}

// Of the first `limit` windows, the bytes that their targets stand for.
double scored_bytes(const TokenFile& file, std::int64_t limit) {
  const auto tokenizer = make_tokenizer(file.tokenizer_kind(), file.tokenizer_model(), "test");
  const EvaluationWindows windows(file, Part::kValidation, 32);
  std::vector<std::int32_t> tokens(32);
  std::vector<std::int32_t> targets(32);
  double bytes = 0;
  for (std::int64_t i = 0; i < std::min(limit, windows.size()); ++i) {
    windows.fill(i, tokens, targets);
    for (const std::int32_t target : targets) {
      if (target != kIgnoredTarget) bytes += static_cast<double>(tokenizer->bytes_of(target).size());
    }
  }
  return bytes;
}

TEST(EvaluationOfData, BitsPerByteCountTheBytesOfTheScoredTokens) {
  const test::TinyRun run;
  // Long words first, then single letters: bytes a token differ by place.
  std::string text;
  for (int i = 0; i < 300; ++i) text += "downward upward sandwich lasagna pizza windowed\n";
  for (int i = 0; i < 4000; ++i) text += static_cast<char>('!' + i * i % 90);
  std::ofstream(run / "pieces.txt") << text;
  ASSERT_EQ(run.kvloom({"tokenize", "--input", "pieces.txt", "--tokenizer", "train-sentencepiece:400",
                        "--valid-fraction", "0.3", "--output", "pieces.h5"})
                .status,
            0);
  ASSERT_EQ(run.train({"--set", "data.tokens=pieces.h5", "--set", "model.vocab=400", "--set", "train.steps=2"}).status,
            0);
  const TokenFile file(run / "pieces.h5");
  std::vector<double> ratios;
  for (const std::int64_t limit : {2, 1000000}) {
    const nlohmann::json said = evaluated(run, {"--limit", std::to_string(limit)});
    const double nats = said["loss"].get<double>() * said["tokens"].get<double>();
    EXPECT_NEAR(said["bits_per_byte"].get<double>(), nats / std::log(2.0) / scored_bytes(file, limit), 1e-6);
    ratios.push_back(scored_bytes(file, limit) / said["tokens"].get<double>());
  }
  EXPECT_GT(std::fabs(ratios[0] / ratios[1] - 1), 0.05) << "the places differ";
}

TEST(EvaluationOfData, PassesAreThoseThatRan) {
  const test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=1"}).status, 0);
  ASSERT_EQ(
      run.train({"--set", "train.steps=1", "--set", "model.kv_map=none", "--set", "output.directory=plain"}).status, 0);
  const auto passes = [&](const std::string& checkpoint, Words more) {
    Words words = {"eval", "--checkpoint", checkpoint, "--data", "tokens.h5", "--limit", "1", "--json"};
    words.insert(words.end(), more.begin(), more.end());
    return nlohmann::json::parse(run.kvloom(words).output)["passes"];
  };
  EXPECT_EQ(passes("out", {}), 4);
  EXPECT_EQ(passes("out", {"--passes", "7"}), 7);
  EXPECT_EQ(passes("out", {"--passes", "1000"}), 32) << "no more than positions";
  EXPECT_EQ(passes("plain", {}), 1);
  EXPECT_EQ(passes("plain", {"--passes", "7"}), 1);
  EXPECT_TRUE(passes("plain", {"--sequential"}).is_null());
  EXPECT_THAT(run.kvloom({"eval", "--checkpoint", "plain", "--data", "tokens.h5", "--limit", "1"}).output,
              HasSubstr(", 1 pass\n"));
}

TEST(EvaluationOfData, ALossThatIsNotFiniteIsAFailure) {
  const test::TinyRun run;
  test::Random random;
  const TemporaryFolder folder;
  std::string config = test::llama_config(2);
  config.replace(config.find("40"), 2, "257");
  test::write_huggingface_folder(folder, "hf", config, DType::kF32, random);
  std::string file = read_bytes(folder / "hf/model.safetensors");
  const float infinite = std::numeric_limits<float>::infinity();
  std::memcpy(file.data() + file.size() - sizeof infinite, &infinite, sizeof infinite);
  folder.write("hf/model.safetensors", file);
  ASSERT_EQ(run.kvloom({"convert", (folder / "hf").string(), "broken"}).status, 0);
  for (const Words& more : {Words{}, Words{"--json"}, Words{"--sequential"}}) {
    Words words = {"eval", "--checkpoint", "broken", "--data", "tokens.h5", "--limit", "1"};
    words.insert(words.end(), more.begin(), more.end());
    const test::ProcessResult result = run.kvloom(words);
    EXPECT_EQ(result.status, 1) << result.output;
    EXPECT_EQ(result.output, "");
    EXPECT_THAT(result.error, HasSubstr("the checkpoint's weights give no probabilities"));
  }
}

TEST(EvaluationOfData, AFolderOfHuggingFaceHasTheLossOfTheCheckpointMadeOfIt) {
  const test::TinyRun run;
  test::Random random;
  const TemporaryFolder folder;
  std::string config = test::llama_config(3);
  config.replace(config.find("40"), 2, "257");
  test::write_huggingface_folder(folder, "hf", config, DType::kF32, random);
  const std::string hf = (folder / "hf").string();
  ASSERT_EQ(run.kvloom({"convert", hf, "made"}).status, 0);
  const auto loss = [&](const std::string& checkpoint, Words more) {
    Words words = {"eval", "--checkpoint", checkpoint, "--data", "tokens.h5", "--limit", "3", "--json"};
    words.insert(words.end(), more.begin(), more.end());
    const test::ProcessResult result = run.kvloom(words);
    EXPECT_EQ(result.status, 0) << result.error;
    return nlohmann::json::parse(result.output)["loss"].get<double>();
  };
  for (const Words& more : {Words{}, Words{"--sequential"}, Words{"--precision", "bf16"}, Words{"--weights", "int8"}}) {
    EXPECT_EQ(loss(hf, more), loss("made", more));
  }
}

TEST(EvaluationOfData, WhatRoundingCostsIsMeasuredBesideIt) {
  const test::TinyRun run;
  ASSERT_EQ(run.train().status, 0);
  const auto said = [&](Words more) {
    Words words = {"eval", "--checkpoint", "out", "--data", "tokens.h5", "--limit", "4", "--json"};
    words.insert(words.end(), more.begin(), more.end());
    const test::ProcessResult result = run.kvloom(words);
    EXPECT_EQ(result.status, 0) << result.error;
    return nlohmann::json::parse(result.output);
  };
  const nlohmann::json exact = said({});
  EXPECT_FALSE(exact.contains("unrounded"));
  EXPECT_EQ(exact["weights"], "f32");
  for (const Words& more : {Words{"--weights", "int8"}, Words{"--kv-dtype", "int8"}, Words{"--kv-dtype", "bf16"},
                            Words{"--weights", "int8", "--kv-dtype", "int8", "--sequential"}}) {
    const nlohmann::json rounded = said(more);
    const bool sequential = more.back() == "--sequential";
    const nlohmann::json beside = sequential ? said({"--sequential"}) : exact;
    EXPECT_EQ(rounded["unrounded"]["loss"], beside["loss"]);
    EXPECT_EQ(rounded["unrounded"]["perplexity"], beside["perplexity"]);
    EXPECT_NE(rounded["loss"], beside["loss"]);
    EXPECT_NEAR(rounded["loss"].get<double>(), beside["loss"].get<double>(), 0.05);
  }
  EXPECT_THAT(
      run.kvloom({"eval", "--checkpoint", "out", "--data", "tokens.h5", "--limit", "4", "--weights", "int8"}).output,
      HasSubstr("weights int8 and K/V f32 cost "));
  const test::ProcessResult refused =
      run.kvloom({"eval", "--checkpoint", "out", "--data", "tokens.h5", "--kv-dtype", "int4"});
  EXPECT_EQ(refused.status, 2);
  EXPECT_THAT(refused.error, HasSubstr("--kv-dtype: 'int4'; right are f32, bf16 and int8"));
}

// A tokenizer may have more ids than the model, while no text has them.
TEST(EvaluationOfData, OnlyATokenBeyondTheModelIsRefused) {
  const test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=1", "--set", "model.vocab=130"}).status, 2) << "the separator is 256";
  // Tokens that stay below the model's vocabulary though the tokenizer's is larger.
  const auto write = [&](std::int32_t largest) {
    TokenFileWriter writer(run / "some.h5",
                           {.vocab = 257, .tokenizer_kind = "bytes", .tokenizer_model = {}, .created_by = "test"});
    std::vector<std::int32_t> tokens(500, 65);
    tokens.back() = largest;
    for (const Part part : {Part::kTraining, Part::kValidation}) {
      writer.begin_document(part);
      writer.append(part, tokens, tokens.size());
    }
    writer.finish();
  };
  const Words fewer = {"--set", "train.steps=1", "--set", "model.vocab=130", "--set", "data.tokens=some.h5"};
  write(129);
  EXPECT_EQ(TokenFile(run / "some.h5").used_vocab(), 130);
  EXPECT_EQ(run.train(fewer).status, 0);
  EXPECT_EQ(run.kvloom({"eval", "--checkpoint", "out", "--data", "some.h5"}).status, 0);
  EXPECT_EQ(run.kvloom({"generate", "--checkpoint", "out", "--prompt", "AAA", "--max-new-tokens", "3"}).status, 0);
  const test::ProcessResult refused = run.kvloom({"generate", "--checkpoint", "out", "--prompt", "A\xc3\xa9"});
  EXPECT_EQ(refused.status, 2);
  EXPECT_THAT(refused.error, HasSubstr("has token 195 of a tokenizer of 257 ids; the model has 130"));
  write(130);
  const test::ProcessResult eval = run.kvloom({"eval", "--checkpoint", "out", "--data", "some.h5"});
  EXPECT_EQ(eval.status, 2);
  EXPECT_THAT(eval.error, HasSubstr("holds token 130 of a vocabulary of 257; the model has 130"));
}

}  // namespace
}  // namespace kvloom
