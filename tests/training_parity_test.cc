// Ten steps of Trainer are ten steps of PyTorch's AdamW (fixtures/training/make.py), and what a seed decides.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/process.h"
#include "tests/support/tiny_run.h"
#include "tests/support/trained_run.h"

namespace kvloom {
namespace {

const std::filesystem::path kFixture = std::filesystem::path(KVLOOM_SOURCE_DIR) / "tests/fixtures/training";

// The fixture's settings; two sequences a micro-batch.
proto::RunConfig config_of(const nlohmann::json& settings, const std::filesystem::path& folder) {
  std::string text = "train { micro_batch: 2 schedule: COSINE\n";
  for (const auto& [name, value] : settings.items()) text += name + ": " + value.dump() + "\n";
  text += "start_from: \"" + (folder / "model").string() + "\" }\n";
  text += "data { tokens: \"" + (folder / "tokens.h5").string() + "\" }\n";
  text += "output { directory: \"" + (folder / "out").string() + "\" }\n";
  return parse_run_config("fixture", text, {});
}

TEST(TrainingParity, TenStepsAreThoseOfPyTorch) {
  const auto expected = nlohmann::json::parse(test::content_of(kFixture / "expected.json"));
  const TemporaryFolder folder;
  const test::ProcessResult converted =
      test::run_process({KVLOOM_BINARY, "convert", (kFixture / "model").string(), "model"}, {.folder = folder.path()});
  ASSERT_EQ(converted.status, 0) << converted.error;
  test::write_token_file(folder / "tokens.h5", 24, expected["text"], expected["held_out"]);
  test::Reports reports;
  const auto alone = make_single_rank();
  Trainer(config_of(expected["train"], folder.path()), *alone, {.observer = &reports}).run();
  ASSERT_EQ(reports.steps.size(), 10u);
  for (std::size_t i = 0; i < reports.steps.size(); ++i) {
    const nlohmann::json& step = expected["steps"][i];
    const StepReport& report = reports.steps[i];
    EXPECT_NEAR(report.loss, step["loss"].get<double>(), 1e-4 * report.loss) << "step " << i + 1;
    EXPECT_NEAR(report.gradient_norm, step["grad_norm"].get<double>(), 1e-3 * report.gradient_norm) << "step " << i + 1;
    EXPECT_NEAR(report.learning_rate, step["learning_rate"].get<double>(), 1e-12) << "step " << i + 1;
  }
  ASSERT_EQ(reports.evaluations.size(), 1u);
  EXPECT_EQ(reports.evaluations.front().tokens, expected["held_out"].size() - 1);
  EXPECT_NEAR(reports.evaluations.front().loss, expected["validation_loss"].get<double>(), 1e-4);
}

// metrics.jsonl, as `kvloom train` writes it, beside what Trainer reports of the same run.
TEST(TrainingParity, TheVerbWritesWhatTheTrainerReports) {
  const test::TinyRun run;
  const std::vector<std::string> settings = {"train.steps=4", "train.evaluate_every=2", "train.warmup_steps=3",
                                             "data.tokens=" + (run / "tokens.h5").string()};
  std::vector<std::string> words;
  for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
  const test::ProcessResult trained = run.train(words);
  ASSERT_EQ(trained.status, 0) << trained.error;
  std::vector<std::string> overrides = settings;
  overrides.push_back("output.directory=" + (run / "in-process").string());
  test::Reports reports;
  const auto alone = make_single_rank();
  Trainer(load_run_config(run / "run.pbtxt", overrides), *alone, {.observer = &reports}).run();
  const std::vector<std::string> lines = run.metrics("out");
  ASSERT_EQ(lines.size(), 5u);  // the first is of an evaluation before the first step
  for (std::size_t i = 0; i < reports.steps.size(); ++i) {
    const StepReport& report = reports.steps[i];
    const auto line = nlohmann::json::parse(lines[i + 1]);
    SCOPED_TRACE(lines[i + 1]);
    EXPECT_EQ(line["step"], report.step);
    EXPECT_NEAR(line["loss"].get<double>(), report.loss, 1e-5);
    EXPECT_NEAR(line["learning_rate"].get<double>(), report.learning_rate, 1e-12);
    EXPECT_NEAR(line["grad_norm"].get<double>(), report.gradient_norm, 1e-4 * report.gradient_norm);
    EXPECT_EQ(line["peak_bytes"], report.peak_bytes);
    const double flops_a_token = report.flops_per_second / report.tokens_per_second;
    EXPECT_NEAR(line["flops_per_second"].get<double>() / line["tokens_per_second"].get<double>(), flops_a_token,
                1e-9 * flops_a_token);
  }
  for (const EvaluationReport& report : reports.evaluations) {
    const auto line = nlohmann::json::parse(lines[report.step]);
    EXPECT_NEAR(line["validation_loss"].get<double>(), report.loss, 1e-5) << report.step;
  }
}

// Runs of three steps from the same weights on the same tokens.
class SeededRuns {
 public:
  SeededRuns() {
    test::Random random;
    test::write_token_file(folder_ / "tokens.h5", 29, random.tokens(801, 29), random.tokens(17, 29));
    *run_.mutable_model() = test::small_model(1, "none");
    run_.mutable_model()->set_context(8);
    run_.mutable_train()->set_steps(3);
    run_.mutable_train()->set_global_batch(2);
    run_.mutable_train()->set_micro_batch(1);
    run_.mutable_data()->set_tokens(folder_ / "tokens.h5");
    run_.mutable_output()->set_directory(folder_ / "out");
    run_ = parse_run_config("test", to_text(run_), {});
    test::write_start(folder_ / "start", run_, random);
    run_.mutable_train()->set_start_from(folder_ / "start");
  }

  std::vector<double> losses(std::uint64_t seed) {
    std::vector<double> losses;
    for (const StepReport& report : reports_of(run_, seed).steps) losses.push_back(report.loss);
    return losses;
  }

  // The weights that a run starts from when it is given none.
  std::vector<double> start(std::uint64_t seed) {
    proto::RunConfig run = run_;
    run.mutable_train()->clear_start_from();
    return reports_of(run, seed).start;
  }

 private:
  test::Reports reports_of(proto::RunConfig run, std::uint64_t seed) const {
    run.mutable_train()->set_seed(seed);
    std::filesystem::remove_all(folder_ / "out");
    test::Reports reports;
    const auto alone = make_single_rank();
    Trainer(run, *alone, {.observer = &reports}).run();
    return reports;
  }

  TemporaryFolder folder_;
  proto::RunConfig run_;
};

TEST(Seeds, OfOneTheDataAreTheSameTwiceAndOfTwoTheyAreNot) {
  SeededRuns runs;
  const std::vector<double> one = runs.losses(1);
  ASSERT_EQ(one.size(), 3u);
  EXPECT_EQ(runs.losses(1), one);
  EXPECT_NE(runs.losses(2), one);
}

TEST(Seeds, OfTwoTheStartingWeightsDiffer) {
  SeededRuns runs;
  const std::vector<double> one = runs.start(1);
  ASSERT_FALSE(one.empty());
  EXPECT_EQ(runs.start(1), one);
  EXPECT_NE(runs.start(2), one);
}

}  // namespace
}  // namespace kvloom
