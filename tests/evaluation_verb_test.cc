// kvloom eval --tasks: equal to lm-evaluation-harness on the fixtures that tests/fixtures/evaluation/make.py asked it
// for, on any number of ranks, and after it was killed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/cuda_stream.h"
#include "tests/support/mpi_run.h"
#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_run.h"
#include "train/output_lock.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::ProcessResult;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Words = std::vector<std::string>;

const fs::path kFixtures = fs::path(KVLOOM_SOURCE_DIR) / "tests/fixtures";
const Words kTasks = {"choices", "partial", "last_word", "texts"};

std::vector<json> lines_of(const fs::path& file) {
  std::vector<json> lines;
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) lines.push_back(json::parse(line));
  return lines;
}

// The fixture's model with one of the fixtures' tokenizers, as a checkpoint.
class HarnessModel {
 public:
  explicit HarnessModel(const std::string& tokenizer) {
    fs::create_directories(folder_ / "hf");
    for (const fs::path& folder : {kFixtures / "evaluation/model", kFixtures / "tokenizers" / tokenizer}) {
      for (const auto& file : fs::directory_iterator(folder)) {
        if (!file.path().filename().string().starts_with("expected")) {
          fs::copy_file(file.path(), folder_ / "hf" / file.path().filename().string());
        }
      }
    }
    const ProcessResult converted = run({KVLOOM_BINARY, "convert", "hf", "model"});
    EXPECT_EQ(converted.status, 0) << converted.error;
  }

  ProcessResult run(Words command) const {
    test::ProcessOptions options;
    options.folder = folder_.path();
    return test::run_process(std::move(command), options);
  }

  ProcessResult evaluate(const Words& more, const Words& before = {}) const {
    Words command = before;
    command.insert(command.end(), {KVLOOM_BINARY, "eval", "--checkpoint", "model", "--tasks"});
    for (const std::string& task : kTasks) {
      command.push_back((kFixtures / "evaluation/tasks" / (task + ".jsonl")).string());
    }
    command.insert(command.end(), more.begin(), more.end());
    ProcessResult result = run(std::move(command));
    EXPECT_EQ(result.status, 0) << result.error;
    return result;
  }

  fs::path operator/(const std::string& name) const { return folder_ / name; }

 private:
  TemporaryFolder folder_;
};

// The harness writes a request's response as [log-likelihood, greedy], a text's as the log-likelihood.
void expect_same_response(const json& ours, const json& expected, const std::string& where) {
  const std::string value = ours.is_array() ? ours[0].get<std::string>() : ours.get<std::string>();
  EXPECT_NEAR(std::stod(value), expected[0].get<double>(), 5e-4) << where;
  ASSERT_EQ(ours.is_array(), expected.size() == 2) << where;
  if (ours.is_array()) {
    EXPECT_EQ(ours[1], expected[1].get<bool>() ? "True" : "False") << where;
  }
}

void expect_same_metric(const json& ours, const json& expected, const std::string& where) {
  if (!expected.is_array()) {
    EXPECT_NEAR(ours.get<double>(), expected.get<double>(), 5e-4) << where;
    return;
  }
  EXPECT_NEAR(ours[0].get<double>(), expected[0].get<double>(), 5e-4) << where;
  EXPECT_EQ(ours[1].get<double>(), expected[1].get<double>()) << where << ": words or bytes";
}

void expect_harness_results(const HarnessModel& model, const std::string& output, const std::string& tokenizer) {
  const json expected = json::parse(read_bytes(kFixtures / "evaluation" / ("expected-" + tokenizer + ".json")));
  const json results = json::parse(read_bytes(model / (output + "/results.json")));
  for (const std::string& task : kTasks) {
    const std::string name = tokenizer + " " + task;
    for (const auto& [metric, value] : expected[task]["results"].items()) {
      const json& ours = results["results"][task][metric];
      if (value.is_string()) {
        EXPECT_EQ(ours, value) << name << " " << metric;
      } else {
        // Perplexities are exponentials: their relative error is the log-likelihood's absolute one.
        EXPECT_NEAR(ours.get<double>(), value.get<double>(), 1e-4 * value.get<double>()) << name << " " << metric;
      }
    }
    EXPECT_EQ(results["n-samples"][task], expected[task]["n-samples"]) << name;
    const std::vector<json> samples = lines_of(model / (output + "/samples_" + task + ".jsonl"));
    ASSERT_EQ(samples.size(), expected[task]["samples"].size()) << name;
    for (std::size_t i = 0; i < samples.size(); ++i) {
      const std::string where = name + " item " + std::to_string(i);
      for (const auto& [field, value] : expected[task]["samples"][i].items()) {
        if (field != "requests") {
          expect_same_metric(samples[i][field], value, where + " " + field);
          continue;
        }
        ASSERT_EQ(samples[i]["filtered_resps"].size(), value.size()) << where;
        for (std::size_t r = 0; r < value.size(); ++r) {
          expect_same_response(samples[i]["filtered_resps"][r], value[r], where + " request " + std::to_string(r));
        }
      }
    }
  }
}

TEST(HarnessParity, LogLikelihoodsMetricsAndStandardErrorsAreTheHarnesss) {
  for (const std::string tokenizer : {"gpt2", "llama2"}) {
    const HarnessModel model(tokenizer);
    model.evaluate({"--output", "out"});
    expect_harness_results(model, "out", tokenizer);
    model.evaluate({"--output", "small", "--batch-tokens", "1", "--sequential"});
    expect_harness_results(model, "small", tokenizer);
  }
}

TEST(EvalTasks, PrintOneTableOnAnyNumberOfRanks) {
  if (!test::has_mpirun()) GTEST_SKIP() << "no mpirun";
  const HarnessModel model("llama2");
  const std::string one = model.evaluate({"--batch-tokens", "100"}).output;
  EXPECT_THAT(one, AllOf(HasSubstr("acc_norm"), HasSubstr("word_perplexity")));
  for (const int ranks : {2, 3}) {
    // The CPU has no tf32; that is said once, and not once a rank.
    const test::ProcessResult many =
        model.evaluate({"--batch-tokens", "100", "--matmul-precision", "tf32"}, test::mpirun(ranks, {}));
    EXPECT_EQ(many.output, one) << ranks;
    EXPECT_EQ(test::count_of(many.error, "tf32"), 1u) << many.error;
  }
}

// "cuda" gives each rank a GPU of its own; a numbered one would be everybody's.
TEST(EvalTasks, OneGpuForSeveralRanksIsRefused) {
  if (!test::has_mpirun()) GTEST_SKIP() << "no mpirun";
  const HarnessModel model("llama2");
  Words command = test::mpirun(2, {});
  command.insert(command.end(), {KVLOOM_BINARY, "eval", "--checkpoint", "model", "--device", "cuda:1", "--tasks",
                                 (kFixtures / "evaluation/tasks" / (kTasks[0] + ".jsonl")).string()});
  const test::ProcessResult result = model.run(command);
  EXPECT_EQ(result.status, 2) << result.error;
  EXPECT_THAT(result.error, HasSubstr("device: cuda:1: 2 ranks; right is cuda"));
  EXPECT_EQ(result.output, "");
  // Without a GPU there is another reason; with one, the figures of the CPU come out.
  command[static_cast<std::size_t>(std::ranges::find(command, "cuda:1") - command.begin())] = "cuda";
  command.insert(command.end(), {"--share-gpus", "--json"});
  const test::ProcessResult shared = model.run(command);
  if (cuda_presence().devices == 0) {
    EXPECT_EQ(shared.status, 2) << shared.error;
    EXPECT_THAT(shared.error, AllOf(HasSubstr("device: cuda:0"), Not(HasSubstr("2 ranks"))));
    return;
  }
  ASSERT_EQ(shared.status, 0) << shared.error;
  const json host = json::parse(model.evaluate({"--json"}).output)["results"][kTasks[0]];
  for (const auto& [metric, value] : json::parse(shared.output)["results"][kTasks[0]].items()) {
    if (!value.is_number()) continue;
    EXPECT_NEAR(value.get<double>(), host[metric].get<double>(), 1e-3) << metric;
  }
}

TEST(EvalTasks, PrintJsonInTheHarnesssLayout) {
  const HarnessModel model("gpt2");
  const json printed = json::parse(model.evaluate({"--json", "--limit", "2", "--passes", "3"}).output);
  for (const char* part : {"results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config"}) {
    EXPECT_TRUE(printed[part].is_object()) << part;
  }
  EXPECT_EQ(printed["n-samples"]["choices"]["effective"], 2);
  EXPECT_EQ(printed["configs"]["texts"]["output_type"], "loglikelihood_rolling");
  EXPECT_EQ(printed["versions"]["choices"], 1.0);
  EXPECT_EQ(printed["config"]["model_args"]["passes"], 1) << "no layer reads upward";
}

// A model that reads upward, and enough items that it is killed among them.
class Interrupted : public ::testing::Test {
 protected:
  Interrupted() {
    EXPECT_EQ(run_.train({"--set", "train.steps=2", "--set", "train.evaluate_every=0"}).status, 0);
    std::ofstream file(run_ / "many.jsonl");
    for (int i = 0; i < 150; ++i) {
      const std::string number = std::to_string(i * i % 97);
      file << json{{"context", "line " + number + " of"},
                   {"choices", {"a small text", "line " + number}},
                   {"answer", 0}}
           << "\n";
    }
  }

  ProcessResult evaluate(const std::string& output, const Words& more = {}, test::ProcessOptions options = {}) {
    Words words = {"eval",     "--checkpoint", "out",    "--tasks",        "many.jsonl",
                   "--output", output,         "--json", "--batch-tokens", "60"};
    words.insert(words.end(), more.begin(), more.end());
    return run_.kvloom(words, std::move(options));
  }

  std::int64_t progress(const std::string& output) const {
    const std::string text = test::content_of(run_ / (output + "/progress-0.jsonl"));
    return std::count(text.begin(), text.end(), '\n');
  }

  test::TinyRun run_;
};

TEST_F(Interrupted, EvaluationGoesOnAndGivesTheSameResults) {
  const ProcessResult whole = evaluate("whole");
  ASSERT_EQ(whole.status, 0) << whole.error;
  test::ProcessOptions killed;
  killed.signal = {SIGKILL, test::Milliseconds(0)};
  killed.signal_after = [&] { return progress("killed") > 20; };
  ASSERT_EQ(evaluate("killed", {}, killed).status, -SIGKILL);
  EXPECT_LT(progress("killed"), 300);
  EXPECT_FALSE(fs::exists(run_ / "killed/results.json"));
  EXPECT_THAT(evaluate("killed").error, HasSubstr("'killed' holds an evaluation; right is --resume auto"));
  EXPECT_THAT(evaluate("killed", {"--resume", "auto", "--sequential"}).error, HasSubstr("its form is \"parallel\""));
  const ProcessResult resumed = evaluate("killed", {"--resume", "auto"});
  EXPECT_EQ(resumed.status, 0) << resumed.error;
  EXPECT_EQ(resumed.output, whole.output);
  EXPECT_EQ(read_bytes(run_ / "killed/samples_many.jsonl"), read_bytes(run_ / "whole/samples_many.jsonl"));
}

TEST_F(Interrupted, EvaluationSaysInWordsWhatIsAnotherNow) {
  ASSERT_EQ(evaluate("done").status, 0);
  const auto refused = [&](const Words& more, const std::string& why) {
    Words words = {"--resume", "auto"};
    words.insert(words.end(), more.begin(), more.end());
    const ProcessResult result = evaluate("done", words);
    EXPECT_EQ(result.status, 2) << result.error;
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    EXPECT_THAT(result.error,
                HasSubstr("'done/progress-0.jsonl' is of another evaluation: " + why + "; right is another --output"));
  };
  fs::copy_file(run_ / "many.jsonl", run_ / "few.jsonl");
  refused({"--tasks", "few.jsonl"}, "its tasks are \"many\", now \"many\", \"few\"");
  std::ofstream(run_ / "many.jsonl", std::ios::app) << test::content_of(run_ / "few.jsonl");
  refused({}, "the task file of \"many\" had another content");
  fs::copy_file(run_ / "few.jsonl", run_ / "many.jsonl", fs::copy_options::overwrite_existing);
  ASSERT_EQ(run_.train({"--resume", "auto", "--set", "train.steps=3"}).status, 0);
  refused({}, "its checkpoint is another than the one given now");
}

TEST_F(Interrupted, EvaluationHasItsOutputForItself) {
  {
    const OutputLock other(run_ / "shared", kEvaluationLock);
    const ProcessResult refused = evaluate("shared", {"--resume", "auto"});
    EXPECT_EQ(refused.status, 2);
    EXPECT_EQ(refused.error_lines(), 1) << refused.error;
    EXPECT_THAT(refused.error, HasSubstr("--output: 'shared' is being evaluated into by process "));
    EXPECT_EQ(progress("shared"), 0);
  }
  EXPECT_FALSE(fs::exists(run_ / "shared")) << "nothing was begun";
  EXPECT_EQ(evaluate("shared").status, 0);
  EXPECT_FALSE(fs::exists(run_ / "shared/evaluation.lock"));
  EXPECT_THAT(evaluate("text.txt").error, HasSubstr("--output: 'text.txt' is"));
  EXPECT_EQ(evaluate("text.txt").status, 2);
}

TEST(EvalTasks, WhatIsWrongIsSaidInOneLine) {
  const HarnessModel model("gpt2");
  std::ofstream(model / "bad.jsonl") << "{\"context\": \"a\", \"target\": \"b\"}\n{\"context\": \"a\"}\n";
  std::ofstream(model / "long.jsonl") << json{{"context", "a"}, {"target", std::string(400, 'x')}} << "\n";
  const auto expect = [&](const Words& words, const std::string& why) {
    Words command = {KVLOOM_BINARY, "eval"};
    command.insert(command.end(), words.begin(), words.end());
    const ProcessResult result = model.run(command);
    EXPECT_EQ(result.status, 2) << result.error;
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    EXPECT_THAT(result.error, HasSubstr(why));
  };
  const Words checkpoint = {"--checkpoint", "model"};
  const auto with = [&](Words more) {
    more.insert(more.begin(), checkpoint.begin(), checkpoint.end());
    return more;
  };
  expect({"--tasks", "bad.jsonl"}, "--checkpoint is required");
  expect(checkpoint, "give one of --data and --tasks");
  expect(with({"--tasks", "bad.jsonl"}), "bad.jsonl, line 2");
  expect(with({"--tasks", "long.jsonl"}), "long.jsonl, line 1: a continuation of");
  expect(with({"--tasks", "none.jsonl"}), "none.jsonl");
  expect(with({"--tasks", "long.jsonl", "long.jsonl"}), "a second task of the name 'long'");
  expect(with({"--tasks", "long.jsonl", "--resume", "auto"}), "--resume auto: goes on with what is in --output");
  expect(with({"--tasks", "long.jsonl", "--passes", "0"}), "--passes: 0");
  expect(with({"--tasks", "long.jsonl", "--part", "training"}), "--part and --any-tokenizer are of --data");
}

}  // namespace
}  // namespace kvloom
