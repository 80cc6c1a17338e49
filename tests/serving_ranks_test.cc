// generate, serve and bench serve on several ranks, as a user runs them: what comes out, what is refused, and how ranks
// fail.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/mpi_run.h"
#include "tests/support/server_process.h"
#include "tests/support/tiny_run.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using Words = std::vector<std::string>;

constexpr test::Milliseconds kTenSeconds{10000};

class ServingRanks : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { run_ = test::trained_tiny_run().release(); }
  static void TearDownTestSuite() { delete run_; }
  void SetUp() override {
    if (!test::has_mpirun()) GTEST_SKIP() << "there is no mpirun";
  }

  static void write_prompts(const std::string& name, int count) {
    std::ofstream file(*run_ / name);
    for (int i = 0; i < count; ++i) {
      file << nlohmann::json{{"prompt", "line " + std::to_string(i)}, {"max_new_tokens", 1 + i % 9}} << '\n';
    }
  }
  static Words generate(const Words& more) {
    Words words = {"generate", "--checkpoint", "out"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static test::ProcessResult on(int ranks, Words words, test::ProcessOptions options = {}) {
    words.insert(words.begin(), KVLOOM_BINARY);
    options.folder = run_->path();
    return test::run_process(test::mpirun(ranks, words), options);
  }
  static std::string content(const std::string& name) { return test::content_of(*run_ / name); }

  static test::TinyRun* run_;
};

test::TinyRun* ServingRanks::run_ = nullptr;

TEST_F(ServingRanks, AnyMeshAndAnyReplicasAnswerManyPromptsAsOneRankDoesInOrder) {
  write_prompts("prompts.jsonl", 23);
  std::ofstream(*run_ / "prompts.jsonl", std::ios::app) << "no json\n"
                                                        << R"({"prompt": "last"})" << '\n';
  const Words words = generate({"--prompts", "prompts.jsonl", "--temperature", "0", "--max-new-tokens", "4"});
  const test::ProcessResult alone = run_->kvloom(words);
  ASSERT_EQ(alone.status, 0) << alone.error;
  for (const Words& mesh :
       {Words{}, Words{"--tp", "2", "--pp", "2"}, Words{"--pp", "2"}, Words{"--pp", "4"}, Words{"--tp", "2"}}) {
    SCOPED_TRACE(testing::PrintToString(mesh));
    Words all = words;
    all.insert(all.end(), mesh.begin(), mesh.end());
    const test::ProcessResult result = on(4, all);
    EXPECT_EQ(result.status, 0) << result.error;
    EXPECT_EQ(result.output, alone.output);
    EXPECT_EQ(test::count_of(result.error, "25 prompts, "), 1u) << result.error;
    EXPECT_EQ(test::count_of(result.error, "line 24"), 1u) << result.error;
  }
}

TEST_F(ServingRanks, ReplicasGoOnWithAnInterruptedOutput) {
  write_prompts("more.jsonl", 11);
  const Words words = generate({"--prompts", "more.jsonl", "--temperature", "0"});
  const auto with = [&](const Words& more) {
    Words all = words;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  ASSERT_EQ(run_->kvloom(with({"--output", "whole.jsonl"})).status, 0);
  const std::string whole = content("whole.jsonl");
  std::size_t end = 0;
  for (int line = 0; line < 4; ++line) end = whole.find('\n', end) + 1;
  std::ofstream(*run_ / "part.jsonl") << whole.substr(0, end);
  const test::ProcessResult result = on(3, with({"--output", "part.jsonl", "--resume", "auto"}));
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_EQ(content("part.jsonl"), whole);
}

TEST_F(ServingRanks, OnePromptIsShownOnce) {
  const Words words = generate({"--prompt", "line ", "--temperature", "0", "--max-new-tokens", "9"});
  Words meshed = words;
  meshed.insert(meshed.end(), {"--tp", "2", "--pp", "2"});
  const test::ProcessResult result = on(4, meshed);
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_EQ(result.output, run_->kvloom(words).output);
  EXPECT_EQ(result.error_lines(), 1) << result.error;
}

TEST_F(ServingRanks, WhatDoesNotFitIsRefusedOnce) {
  const auto expect_refused = [](int ranks, const Words& more, const std::string& why) {
    Words words = generate({"--prompt", "a"});
    words.insert(words.end(), more.begin(), more.end());
    const test::ProcessResult result = on(ranks, words);
    EXPECT_EQ(result.status, 2) << result.error;
    EXPECT_EQ(result.output, "");
    EXPECT_EQ(test::count_of(result.error, why), 1u) << result.error;
    EXPECT_EQ(test::count_of(result.error, "rank 0: "), 1u) << result.error;
  };
  expect_refused(4, {"--tp", "3"}, "does not divide a world of 4 ranks");
  expect_refused(2, {}, "2 replicas for one prompt");
  expect_refused(3, {"--pp", "3", "--boundaries", "1,9"}, "--boundaries: '1,9'; right are layers");
  expect_refused(2, {"--pp", "2", "--boundaries", "1,2"}, "stage boundaries 0,1,2,4: 3 stages");
  expect_refused(2, {"--tp", "2", "--patience", "0"}, "--patience: 0; right is above 0");
}

TEST_F(ServingRanks, BenchServeMeasuresMeshesAndReplicas) {
  for (const Words& mesh : {Words{"--tp", "2", "--pp", "2"}, Words{"--pp", "2"}}) {
    Words words = {"bench",   "serve",  "--layers",      "4",   "--hidden",        "32", "--ffn",   "48",
                   "--heads", "4",      "--vocab",       "100", "--kv-heads",      "2",  "--batch", "5",
                   "--steps", "3",      "--repetitions", "1",   "--prompt-tokens", "8",  "--json",  "--first-token",
                   "8",       "--maps", "sandwich-top:3"};
    words.insert(words.end(), mesh.begin(), mesh.end());
    const test::ProcessResult result = on(4, words);
    ASSERT_EQ(result.status, 0) << result.error;
    const auto json = nlohmann::json::parse(result.output);
    EXPECT_EQ(json["runs"][0]["sequences"], 5);
    EXPECT_GT(json["runs"][0]["decode_tokens_per_second"], 0);
    EXPECT_EQ(json["first_tokens"].size(), 1u);
  }
}

// Idle in between.
TEST_F(ServingRanks, AServerOnFourRanksAnswersAsOnOne) {
  const auto ask = [](const test::ServerProcess& server) {
    std::vector<std::string> texts;
    for (int i = 0; i < 3; ++i) {
      const nlohmann::json body = {{"prompt", "line " + std::to_string(i)}, {"max_tokens", 9}, {"temperature", 0}};
      const test::HttpReply reply = test::HttpClient(server.port()).ask("POST", "/v1/completions", body.dump());
      EXPECT_EQ(reply.status, 200) << reply.body;
      if (reply.status == 200) texts.push_back(reply.json()["choices"][0]["text"]);
      std::this_thread::sleep_for(test::Milliseconds(200));
    }
    return texts;
  };
  test::ServerProcess alone(run_->path(), {"--checkpoint", "out"});
  const std::vector<std::string> wanted = ask(alone);
  alone.signal(SIGTERM);
  EXPECT_EQ(alone.wait(), 0) << alone.error();
  test::ServerProcess server(run_->path(), {"--checkpoint", "out", "--tp", "2", "--pp", "2"}, test::mpirun(4, {}));
  EXPECT_THAT(server.output(), HasSubstr("data 1 x pipeline 2 x tensor 2"));
  EXPECT_EQ(test::count_of(server.output(), "largest batch"), 1u);
  EXPECT_EQ(ask(server), wanted);
  // A rank that is told to end lets texts under way end; mpirun would give it a second.
  test::HttpClient client(server.port());
  const nlohmann::json body = {{"prompt", "a"}, {"max_tokens", 25}, {"stream", true}, {"ignore_eos", true}};
  client.send(test::HttpClient::request_text("POST", "/v1/completions", body.dump()));
  while (client.unread().find("data: ") == std::string::npos && client.read_more()) {
  }
  ::kill(test::ranks_of(server.process()).at(0), SIGTERM);
  const test::HttpReply reply = client.receive();
  EXPECT_TRUE(reply.whole);
  EXPECT_THAT(reply.body, HasSubstr("[DONE]"));
  EXPECT_EQ(server.wait(), 0) << server.error();
}

// Of four ranks under load one is killed, or stands still.
class ServingRanksFail : public ServingRanks {
 protected:
  test::ProcessResult signal_one(int signal, int victim, const Words& mesh) {
    write_prompts("endless.jsonl", 200000);
    std::filesystem::remove(*run_ / "endless-out.jsonl");
    Words words = generate({"--prompts", "endless.jsonl", "--output", "endless-out.jsonl", "--patience", "2"});
    words.insert(words.end(), mesh.begin(), mesh.end());
    test::ProcessOptions options;
    options.signal = {signal, test::Milliseconds(0)};
    options.signal_after = [] { return test::count_of(content("endless-out.jsonl"), "\n") >= 20; };
    options.signal_to = [victim](pid_t mpirun) {
      const std::map<int, pid_t> ranks = test::ranks_of(mpirun);
      return ranks.contains(victim) ? ranks.at(victim) : -1;
    };
    return on(4, words, options);
  }

  // What was written is whole: every line but one that was being written.
  void expect_whole_lines() {
    std::istringstream lines(content("endless-out.jsonl"));
    int count = 0;
    for (std::string line; std::getline(lines, line) && !lines.eof(); ++count) {
      EXPECT_EQ(nlohmann::json::parse(line)["index"], count);
    }
    EXPECT_GE(count, 20);
  }
};

TEST_F(ServingRanksFail, OneThatIsKilledIsNamedAndAllEnd) {
  const test::ProcessResult killed = signal_one(SIGKILL, 3, {"--tp", "2", "--pp", "2"});
  EXPECT_NE(killed.status, 0);
  EXPECT_LT(killed.after_signal, kTenSeconds);
  EXPECT_THAT(killed.error, HasSubstr("process rank 3"));
  expect_whole_lines();
}

TEST_F(ServingRanksFail, AStageThatStandsStillIsNamedAndAllEnd) {
  const test::ProcessResult stopped = signal_one(SIGSTOP, 2, {"--pp", "4"});
  EXPECT_EQ(stopped.status, 1) << stopped.error;
  EXPECT_LT(stopped.after_signal, kTenSeconds);
  EXPECT_THAT(stopped.error, HasSubstr("from stage 2 to stage ")) << "no word of who stands still";
  expect_whole_lines();
}

TEST_F(ServingRanksFail, ATensorRankThatStandsStillEndsAll) {
  const test::ProcessResult stopped = signal_one(SIGSTOP, 1, {"--tp", "4"});
  EXPECT_EQ(stopped.status, 1) << stopped.error;
  EXPECT_LT(stopped.after_signal, kTenSeconds);
  EXPECT_THAT(stopped.error, HasSubstr("for the others' part of a sum"));
  expect_whole_lines();
}

}  // namespace
}  // namespace kvloom
