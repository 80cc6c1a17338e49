#include "train/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

std::vector<nlohmann::json> lines_of(const std::filesystem::path& path) {
  std::istringstream text(read_bytes(path));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

std::vector<std::uint64_t> steps_of(const std::filesystem::path& path) {
  std::vector<std::uint64_t> steps;
  for (const nlohmann::json& line : lines_of(path)) steps.push_back(line["step"]);
  return steps;
}

void write_steps(const std::filesystem::path& path, std::uint64_t resumed, std::uint64_t last) {
  MetricsWriter writer(path, resumed);
  for (std::uint64_t step = resumed + 1; step <= last; ++step) writer.write(StepMetrics{.step = step});
}

TEST(Metrics, ALineHoldsEveryFieldExactly) {
  test::Random random;
  const StepMetrics metrics{7, random.normal(), random.normal(), random.normal(), random.normal(), {{"passes", 9}}};
  const nlohmann::json line = nlohmann::json::parse(metrics_line(metrics));
  EXPECT_EQ(line["step"], 7);
  EXPECT_EQ(line["loss"].get<double>(), metrics.loss);
  EXPECT_EQ(line["learning_rate"].get<double>(), metrics.learning_rate);
  EXPECT_EQ(line["grad_norm"].get<double>(), metrics.grad_norm);
  EXPECT_EQ(line["tokens_per_second"].get<double>(), metrics.tokens_per_second);
  EXPECT_EQ(line["passes"], 9);
}

TEST(Metrics, AnEvaluationsLineHoldsItsLossAndPerplexity) {
  test::Random random;
  const EvaluationMetrics metrics{.step = 9, .loss = random.real(0, 8)};
  const nlohmann::json line = nlohmann::json::parse(metrics_line(metrics));
  EXPECT_EQ(line.size(), 3u);
  EXPECT_EQ(line["step"], 9);
  EXPECT_EQ(line["validation_loss"].get<double>(), metrics.loss);
  EXPECT_EQ(line["validation_perplexity"].get<double>(), std::exp(metrics.loss));
}

TEST(Metrics, ARunFromTheBeginningLeavesNothingOfAnEarlierOne) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "metrics.jsonl";
  for (int run = 0; run < 2; ++run) {
    MetricsWriter writer(path, 0);
    writer.write(EvaluationMetrics{.step = 0, .loss = 5});
    writer.write(StepMetrics{.step = 1});
    EXPECT_EQ(steps_of(path), (std::vector<std::uint64_t>{0, 1}));
  }
}

TEST(Metrics, NumbersThatJsonLacksBecomeNull) {
  StepMetrics metrics;
  metrics.loss = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(nlohmann::json::parse(metrics_line(metrics))["loss"].is_null());
}

TEST(Metrics, EachLineIsThereWhenWriteReturns) {
  const TemporaryFolder folder;
  MetricsWriter writer(folder / "metrics.jsonl", 0);
  for (std::uint64_t step = 1; step <= 3; ++step) {
    writer.write(StepMetrics{.step = step});
    EXPECT_EQ(lines_of(folder / "metrics.jsonl").size(), step);
  }
}

TEST(Metrics, AResumedRunLeavesEachStepOnce) {
  test::Random random;
  for (int repeat = 0; repeat < 10; ++repeat) {
    const TemporaryFolder folder;
    const std::filesystem::path path = folder / "metrics.jsonl";
    const auto reached = static_cast<std::uint64_t>(random.integer(0, 20));
    const auto resumed = static_cast<std::uint64_t>(random.integer(0, static_cast<std::int64_t>(reached)));
    write_steps(path, 0, reached);
    write_steps(path, resumed, 25);
    std::vector<std::uint64_t> expected;
    for (std::uint64_t step = 1; step <= 25; ++step) expected.push_back(step);
    EXPECT_EQ(steps_of(path), expected);
  }
}

TEST(Metrics, AnEvaluationDoneAgainTakesThePlaceOfTheLineOfAKilledRun) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "metrics.jsonl";
  write_steps(path, 0, 3);
  for (const double loss : {5.0, 4.0}) MetricsWriter(path, 3).write(EvaluationMetrics{.step = 3, .loss = loss});
  EXPECT_EQ(steps_of(path), (std::vector<std::uint64_t>{1, 2, 3, 3}));
  EXPECT_EQ(lines_of(path).back()["validation_loss"], 4.0);
  write_steps(path, 3, 4);
  EXPECT_EQ(steps_of(path), (std::vector<std::uint64_t>{1, 2, 3, 3, 4}))
      << "a run that has saved it does not do it again";
  MetricsWriter(path, 4).write(EvaluationMetrics{.step = 4, .loss = 3});
  EXPECT_EQ(steps_of(path), (std::vector<std::uint64_t>{1, 2, 3, 3, 4, 4})) << "a step's own line is no evaluation's";
}

TEST(Metrics, ALineThatWasCutShortGoes) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder.write("metrics.jsonl", "{\"step\":1}\n{\"step\":2,\"lo");
  write_steps(path, 5, 6);
  EXPECT_EQ(steps_of(path), (std::vector<std::uint64_t>{1, 6}));
}

TEST(Metrics, AFileOfSomethingElseIsRefusedAndKept) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder.write("metrics.jsonl", "{\"step\":1}\nnot ours\n");
  EXPECT_THROW(MetricsWriter(path, 1), InputError);
  EXPECT_EQ(read_bytes(path), "{\"step\":1}\nnot ours\n");
}

}  // namespace
}  // namespace kvloom
