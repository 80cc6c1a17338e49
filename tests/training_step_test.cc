// Steps of Trainer on one rank against training in plain double precision (support/reference_training.h): weights,
// moments and every figure that is reported.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "data/dataset.h"
#include "tests/support/process.h"
#include "tests/support/reference_training.h"
#include "tests/support/sanitized.h"
#include "tests/support/trained_run.h"

namespace kvloom {
namespace {

using proto::TrainConfig;
using test::ReferenceSequence;

constexpr std::int64_t kContext = 4;
constexpr std::int64_t kWindows = 5;  // of the training part: an epoch ends within a step
constexpr std::int64_t kBatch = 4;    // sequences of a step, two a micro-batch
constexpr std::uint32_t kSteps = 4;
constexpr std::int64_t kVocab = 7;

// What is relative to the gradient of the weights that a run starts from.
struct Case {
  std::string name;
  TrainConfig::Schedule schedule;
  std::uint32_t warmup;
  double minimum;  // of the highest rate
  double clip;     // of the first gradient's norm; 0: none
  std::string map = "none";

  friend std::ostream& operator<<(std::ostream& out, const Case& given) { return out << given.name; }
};

std::vector<Case> cases() {
  if (test::kSanitized) return {{"LinearClipped", TrainConfig::LINEAR, 1, 0.0, 0.3}};
  return {
      {"CosineToZeroUnclipped", TrainConfig::COSINE, 2, 0.0, 5.0},
      {"LinearClipped", TrainConfig::LINEAR, 0, 0.1, 0.3},
      {"DecayBeginsInWarmUp", TrainConfig::WARMUP_STABLE_DECAY, 2, 0.0, 0.0},
      {"ConstantOverPasses", TrainConfig::CONSTANT, 1, 0.1, 0.3, "1_1"},
  };
}

proto::RunConfig config_of(const Case& given, test::Random& random) {
  proto::RunConfig run;
  proto::ModelConfig& model = *run.mutable_model();
  model = test::small_model(2, given.map);
  model.set_hidden(8);
  model.set_ffn(6);
  model.set_heads(2);
  model.set_kv_heads(1);
  model.set_vocab(kVocab);
  model.set_context(kContext);
  model.set_qkv_bias(true);
  model.set_qk_norm(random.flip());
  model.set_tied_embeddings(random.flip());
  run.mutable_passes()->set_without_gradient(1);
  run.mutable_passes()->set_with_gradient(2);
  TrainConfig& train = *run.mutable_train();
  train.set_steps(kSteps);
  train.set_global_batch(kBatch);
  train.set_micro_batch(2);
  train.set_schedule(given.schedule);
  train.set_warmup_steps(given.warmup);
  train.set_decay_steps(3);
  train.set_learning_rate(random.real(0.01, 0.02));
  train.set_minimum_learning_rate(given.minimum * train.learning_rate());
  train.set_beta1(random.real(0.5, 0.7));
  train.set_beta2(random.real(0.9, 0.98));
  train.set_weight_decay(random.real(0.5, 1.0));
  train.set_gradient_clip(0);
  train.set_seed(static_cast<std::uint64_t>(random.integer(1, 1000000)));
  train.set_evaluate_every(3);
  run.mutable_data()->set_tokens("unset");
  return parse_run_config("test", to_text(run), {});
}

// The sequences of step 1, 2, ... as the data module deals them (dataset_test.cc says how).
std::vector<ReferenceSequence> batch_of(const TokenFile& file, std::uint64_t seed, std::uint32_t step) {
  const TokenWindows windows(file, kContext, seed);
  std::vector<ReferenceSequence> batch;
  for (std::int64_t n = 0; n < kBatch; ++n) {
    std::vector<std::int32_t> tokens(kContext);
    std::vector<std::int32_t> targets(kContext);
    windows.fill((step - 1) * kBatch + n, 1, tokens, targets);
    batch.push_back({{tokens.begin(), tokens.end()}, {targets.begin(), targets.end()}});
  }
  return batch;
}

// Every token but the first a target once; what fills up the last sequence does not count.
std::vector<ReferenceSequence> sequences_of(const std::vector<std::int32_t>& stream) {
  std::vector<ReferenceSequence> sequences;
  for (std::size_t at = 0; at + 1 < stream.size(); ++at) {
    if (at % kContext == 0) sequences.push_back({std::vector<int>(kContext, 0), std::vector<int>(kContext, -1)});
    sequences.back().tokens[at % kContext] = stream[at];
    sequences.back().targets[at % kContext] = stream[at + 1];
  }
  return sequences;
}

// The 2-norm of the difference over that of what is expected, or over a share of `scale`'s if that is larger: f32 does
// not know what nearly cancels.
double distance(std::span<const double> actual, std::span<const double> expected, double scale) {
  double squares = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) squares += std::pow(actual[i] - expected[i], 2);
  return std::sqrt(squares) / std::max(test::ReferenceTraining::norm_of(expected), 0.01 * scale);
}

class TrainingStep : public ::testing::TestWithParam<Case> {
 protected:
  // Tokens and the weights to start from.
  void SetUp() override {
    const Case& given = GetParam();
    run_ = config_of(given, random_);
    validation_ = random_.tokens(3 * kContext - 1, kVocab);  // the last window has two targets
    test::write_token_file(folder_ / "tokens.h5", kVocab, random_.tokens(kWindows * kContext + 1, kVocab), validation_);
    run_.mutable_data()->set_tokens(folder_ / "tokens.h5");
    run_.mutable_output()->set_directory(folder_ / "out");
    start_ = test::write_start(folder_ / "start", run_, random_);
    run_.mutable_train()->set_start_from(folder_ / "start");
  }

  // Clipping as the case says, and an epsilon as large as a gradient's elements: an update is then as exact as its
  // gradient is.
  void scale_by_the_first_gradient() {
    const test::ReferenceTraining reference(run_, start_);
    const auto first = batch_of(TokenFile(folder_ / "tokens.h5"), run_.train().seed(), 1);
    const double norm = test::ReferenceTraining::norm_of(reference.gradient(first));
    const Case& given = GetParam();
    const double kept = given.clip > 0 && given.clip < 1 ? given.clip : 1.0;
    run_.mutable_train()->set_gradient_clip(given.clip * norm);
    run_.mutable_train()->set_epsilon(kept * norm / std::sqrt(static_cast<double>(start_.size())));
  }

  // A clock that is a quarter of a second later whenever it is read.
  TrainerOptions options() {
    return {.observer = &reports_, .now = [this] {
              clock_ += std::chrono::milliseconds(250);
              return clock_;
            }};
  }

  void expect_step(const StepReport& report, const test::ReferenceTraining::Figures& expected) const {
    SCOPED_TRACE("step " + std::to_string(report.step));
    EXPECT_NEAR(report.loss, expected.loss, 1e-5 * expected.loss);
    EXPECT_NEAR(report.learning_rate, expected.learning_rate, 1e-9 * run_.train().learning_rate());
    EXPECT_NEAR(report.gradient_norm, expected.gradient_norm, 3e-4 * expected.gradient_norm);
    EXPECT_EQ(report.steps, kSteps);
    EXPECT_EQ(report.seconds, 0.25);
    EXPECT_EQ(report.tokens_per_second, kBatch * kContext / 0.25);
    EXPECT_GT(report.peak_bytes, 0u);
  }

  // Of each parameter, `values(name)` against its part of `expected`, flat.
  void expect_close(const test::ReferenceTraining& reference, const std::vector<double>& expected,
                    const std::function<std::vector<double>(const Parameter&)>& values, double tolerance,
                    const std::string& what) const {
    const double scale = test::ReferenceTraining::norm_of(expected);
    ASSERT_GT(scale, 0);
    for (const Parameter& parameter : reference.layout().all()) {
      const std::span<const double> part(expected.data() + parameter.offset,
                                         static_cast<std::size_t>(element_count(parameter.shape)));
      EXPECT_LE(distance(values(parameter), part, scale), tolerance) << what << " of " << parameter.name;
    }
  }

  test::Random random_;
  TemporaryFolder folder_;
  proto::RunConfig run_;
  std::vector<std::int32_t> validation_;
  std::vector<double> start_;
  test::Reports reports_;
  std::chrono::steady_clock::time_point clock_;
};

std::vector<double> minus(std::vector<double> a, const std::vector<double>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

TEST_P(TrainingStep, GivesTheWeightsMomentsAndFiguresOfThePapers) {
  scale_by_the_first_gradient();
  const auto alone = make_single_rank();
  Trainer trainer(run_, *alone, options());
  ASSERT_EQ(trainer.run(), TrainOutcome::kFinished);
  ASSERT_EQ(reports_.start, start_);

  const TokenFile file(folder_ / "tokens.h5");
  const auto held_out = sequences_of(validation_);
  test::ReferenceTraining reference(run_, start_);
  std::vector<double> validation_losses = {reference.loss(held_out)};
  ASSERT_EQ(reports_.steps.size(), kSteps);
  for (std::uint32_t step = 1; step <= kSteps; ++step) {
    ASSERT_EQ(reports_.steps[step - 1].step, step);
    expect_step(reports_.steps[step - 1], reference.step(batch_of(file, run_.train().seed(), step)));
    if (step >= 3) validation_losses.push_back(reference.loss(held_out));
  }

  const std::vector<double> weights = test::weights_of(trainer.model());
  const auto movement = [&](const Parameter& parameter) {
    const auto begin = parameter.offset;
    std::vector<double> moved;
    for (std::int64_t i = begin; i < begin + element_count(parameter.shape); ++i) {
      moved.push_back(weights[static_cast<std::size_t>(i)] - start_[static_cast<std::size_t>(i)]);
    }
    return moved;
  };
  expect_close(reference, minus(reference.weights(), start_), movement, 1e-3, "movement");
  CheckpointReader saved(reports_.checkpoints.at(kSteps));
  const auto moment = [&](const std::string& prefix) {
    return [&saved, prefix](const Parameter& parameter) { return test::stored(saved, prefix + parameter.name); };
  };
  expect_close(reference, reference.momentum(), moment("optimizer/momentum/"), 1e-3, "momentum");
  expect_close(reference, reference.variance(), moment("optimizer/variance/"), 1e-3, "variance");
  EXPECT_EQ(saved.manifest().training().step(), kSteps);
  EXPECT_EQ(saved.manifest().training().sequences(), kSteps * kBatch);

  const std::vector<std::uint64_t> evaluated = {0, 3, 4};
  ASSERT_EQ(reports_.evaluations.size(), evaluated.size());
  for (std::size_t i = 0; i < evaluated.size(); ++i) {
    EXPECT_EQ(reports_.evaluations[i].step, evaluated[i]);
    EXPECT_EQ(reports_.evaluations[i].tokens, validation_.size() - 1);
    EXPECT_NEAR(reports_.evaluations[i].loss, validation_losses[i], 1e-5 * validation_losses[i]);
  }
}

TEST_P(TrainingStep, ReportsTheValidationLossThatEvalFindsInItsCheckpoint) {
  const auto alone = make_single_rank();
  Trainer(run_, *alone, options()).run();
  const test::ProcessResult result =
      test::run_process({KVLOOM_BINARY, "eval", "--checkpoint", reports_.checkpoints.at(kSteps), "--data",
                         folder_ / "tokens.h5", "--any-tokenizer", "--json"},
                        {.folder = folder_.path()});
  ASSERT_EQ(result.status, 0) << result.error;
  const auto evaluated = nlohmann::json::parse(result.output);
  EXPECT_EQ(evaluated["tokens"], reports_.evaluations.back().tokens);
  EXPECT_EQ(evaluated["sequences"], 3);
  EXPECT_NEAR(evaluated["loss"].get<double>(), reports_.evaluations.back().loss, 1e-6);
}

std::string name_of_case(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Cases, TrainingStep, ::testing::ValuesIn(cases()), name_of_case);

}  // namespace
}  // namespace kvloom
