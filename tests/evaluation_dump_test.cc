// `kvloom eval --dump-logits --dump-gradients` as a user runs it: the numbers are those of an independent model in
// PyTorch (fixtures/gradients/make.py), and no file stands half written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "core/safetensors.h"
#include "data/token_file.h"
#include "tests/support/fixture_names.h"
#include "tests/support/hdf5_file.h"
#include "tests/support/mpi_run.h"
#include "tests/support/process.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Words = std::vector<std::string>;

constexpr std::int64_t kContext = 10;
constexpr std::int64_t kVocab = 24;
const fs::path kFixtures = fs::path(KVLOOM_SOURCE_DIR) / "tests/fixtures/gradients";

// What make.py stored.
class Expected {
 public:
  explicit Expected(const std::string& name) : file_(kFixtures / name / "expected.safetensors") {}

  template <typename T>
  std::vector<T> values(const std::string& name) const {
    const SafetensorsEntry& entry = file_.tensor(name);
    std::vector<T> values(static_cast<std::size_t>(element_count(entry.shape)));
    EXPECT_EQ(entry.bytes, values.size() * sizeof(T)) << name;
    std::memcpy(values.data(), file_.data(entry).data(), entry.bytes);
    return values;
  }
  std::vector<std::int32_t> stream() const {
    const auto tokens = values<std::int64_t>("stream");
    return {tokens.begin(), tokens.end()};
  }
  // By the weight's name.
  std::map<std::string, Shape> gradients() const {
    const std::string prefix = "gradients/";
    std::map<std::string, Shape> gradients;
    for (const SafetensorsEntry& entry : file_.tensors()) {
      if (entry.name.starts_with(prefix)) gradients[entry.name.substr(prefix.size())] = entry.shape;
    }
    return gradients;
  }

 private:
  SafetensorsFile file_;
};

// The largest difference, relative to the largest expected value.
double difference(const std::vector<float>& values, const std::vector<float>& expected) {
  EXPECT_EQ(values.size(), expected.size());
  double largest = 0;
  double difference = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    difference = std::max(difference, std::abs(static_cast<double>(values[i]) - static_cast<double>(expected[i])));
  }
  return difference / largest;
}

std::vector<hsize_t> sizes(const Shape& shape) { return {shape.begin(), shape.end()}; }

// A fixture as a user has it: a checkpoint `model`, and its text in `tokens.h5`.
class EvaluatedModel {
 public:
  explicit EvaluatedModel(const std::string& fixture) {
    const test::ProcessResult converted = kvloom({"convert", (kFixtures / fixture).string(), "model"});
    EXPECT_EQ(converted.status, 0) << converted.error;
    write_tokens(Expected(fixture).stream());
  }

  fs::path operator/(const std::string& name) const { return folder_ / name; }

  void write_tokens(const std::vector<std::int32_t>& tokens) const {
    TokenFileWriter writer(folder_ / "tokens.h5", {.vocab = kVocab, .tokenizer_kind = "bytes", .created_by = "test"});
    writer.begin_document(Part::kTraining);
    writer.append(Part::kTraining, tokens, tokens.size());
    writer.finish();
  }

  test::ProcessResult kvloom(Words words, test::ProcessOptions options = {}) const {
    words.insert(words.begin(), KVLOOM_BINARY);
    options.folder = folder_.path();
    return test::run_process(std::move(words), options);
  }

  static Words eval(const Words& more) {
    Words words = {"eval", "--checkpoint", "model", "--data", "tokens.h5", "--part", "training"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  nlohmann::json evaluated(Words more) const {
    more.emplace_back("--json");
    const test::ProcessResult result = kvloom(eval(more));
    EXPECT_EQ(result.status, 0) << result.error;
    return result.status == 0 ? nlohmann::json::parse(result.output) : nlohmann::json();
  }

  // Files but those that the test itself has put there.
  std::set<std::string> dumps() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_.path())) names.insert(entry.path().filename().string());
    for (const char* name : {"model", "tokens.h5", "stdout.txt", "stderr.txt"}) names.erase(name);
    return names;
  }

 private:
  TemporaryFolder folder_;
};

class EvaluationDump : public ::testing::TestWithParam<std::string> {};

TEST_P(EvaluationDump, LogitsAndEveryGradientAreThoseOfPyTorch) {
  const EvaluatedModel model(GetParam());
  const Expected expected(GetParam());
  model.evaluated({"--dump-logits", "logits.h5", "--dump-gradients", "gradients.h5"});

  const test::Hdf5File logits(model / "logits.h5");
  EXPECT_EQ(logits.names(), (std::set<std::string>{"logits", "targets", "tokens"}));
  EXPECT_EQ(logits.floats("logits").shape, (std::vector<hsize_t>{3, kContext, kVocab}));
  const double logits_difference = difference(logits.floats("logits").values, expected.values<float>("logits"));
  EXPECT_LT(logits_difference, 1e-4);

  const test::Hdf5File gradients(model / "gradients.h5");
  std::set<std::string> names = {"targets", "tokens"};
  double largest = 0;
  std::string worst;
  for (const auto& [name, shape] : expected.gradients()) {
    names.insert(name);
    const test::Hdf5Dataset<float> gradient = gradients.floats(name);
    EXPECT_EQ(gradient.shape, sizes(shape)) << name;
    const double here = difference(gradient.values, expected.values<float>("gradients/" + name));
    EXPECT_LT(here, 1e-4) << name;
    if (here > largest) worst = name;
    largest = std::max(largest, here);
  }
  EXPECT_EQ(gradients.names(), names);
  const double loss = expected.values<double>("mean_loss").front();
  EXPECT_NEAR(logits.number("mean_loss"), loss, 1e-5 * loss);
  EXPECT_NEAR(gradients.number("mean_loss"), loss, 1e-5 * loss);
  RecordProperty("logits", std::to_string(logits_difference));
  RecordProperty("gradients", std::to_string(largest));
  if (std::getenv("KVLOOM_TEST_VERBOSE") != nullptr) {
    std::printf("%s: logits %.2e, worst gradient %.2e (%s)\n", GetParam().c_str(), logits_difference, largest,
                worst.c_str());
  }
}

TEST_P(EvaluationDump, SequentialLogitsAreThoseOfAsManyPassesAsPositions) {
  const EvaluatedModel model(GetParam());
  model.evaluated({"--sequential", "--dump-logits", "sequential.h5"});
  model.evaluated({"--passes", std::to_string(kContext), "--dump-logits", "parallel.h5"});
  const test::Hdf5File sequential(model / "sequential.h5");
  const test::Hdf5File parallel(model / "parallel.h5");
  EXPECT_LT(difference(parallel.floats("logits").values, sequential.floats("logits").values), 1e-4);
  EXPECT_EQ(sequential.text("form"), "sequential");
  EXPECT_EQ(sequential.integer("passes"), 0);
  EXPECT_EQ(parallel.text("form"), "parallel");
  EXPECT_EQ(parallel.integer("passes"), kContext);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, EvaluationDump, ::testing::ValuesIn(test::fixture_names(kFixtures)),
                         [](const auto& fixture) {
                           std::string name = fixture.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

// From dumped logits and targets alone.
double loss_of(const test::Hdf5File& file) {
  const std::vector<float> logits = file.floats("logits").values;
  const std::vector<std::int32_t> targets = file.integers("targets").values;
  double nats = 0;
  int counted = 0;
  for (std::size_t row = 0; row < targets.size(); ++row) {
    if (targets[row] < 0) continue;
    const float* here = logits.data() + row * kVocab;
    double total = 0;
    for (std::int64_t i = 0; i < kVocab; ++i) total += std::exp(static_cast<double>(here[i]));
    nats += std::log(total) - static_cast<double>(here[targets[row]]);
    ++counted;
  }
  EXPECT_EQ(counted, file.integer("counted_targets"));
  return nats / counted;
}

TEST(EvaluationDumps, TheMeanLossIsEvalsAndThatOfTheDumpedLogits) {
  const EvaluatedModel model("lasagna-top-3");
  for (const Words& form : {Words{}, Words{"--passes", "3"}, Words{"--sequential"}, Words{"--limit", "2"}}) {
    const double loss = model.evaluated(form)["loss"];
    Words dumping = form;
    dumping.insert(dumping.end(), {"--dump-logits", "logits.h5"});
    const double dumped = model.evaluated(dumping)["loss"];
    // Dumps are of what training computes, which rounds otherwise than inference.
    EXPECT_NEAR(dumped, loss, 1e-6 * loss);
    const test::Hdf5File file(model / "logits.h5");
    EXPECT_EQ(file.number("mean_loss"), dumped);
    EXPECT_NEAR(loss_of(file), dumped, 1e-5 * dumped);
  }
  const double loss = model.evaluated({"--dump-gradients", "gradients.h5"})["loss"];
  EXPECT_NEAR(test::Hdf5File(model / "gradients.h5").number("mean_loss"), loss, 1e-6 * loss);
}

TEST(EvaluationDumps, TokensAreTheTextInOrderAndALimitTakesTheFirstSequences) {
  const EvaluatedModel model("sandwich-middle-3");
  const std::vector<std::int32_t> stream = Expected("sandwich-middle-3").stream();
  model.evaluated({"--dump-logits", "all.h5"});
  const nlohmann::json json =
      model.evaluated({"--limit", "2", "--dump-logits", "logits.h5", "--dump-gradients", "gradients.h5"});
  EXPECT_EQ(json["sequences"], 2);
  EXPECT_EQ(json["tokens"], 2 * kContext);
  const nlohmann::json without = model.evaluated({"--limit", "2"});
  for (const auto& [name, value] : without.items()) {
    if (value.is_number_float()) {
      EXPECT_NEAR(json[name].get<double>(), value.get<double>(), 1e-5) << name;
    } else {
      EXPECT_EQ(json[name], value) << name;
    }
  }
  for (const char* name : {"logits.h5", "gradients.h5"}) {
    const test::Hdf5File file(model / name);
    const test::Hdf5Dataset<std::int32_t> tokens = file.integers("tokens");
    EXPECT_EQ(tokens.shape, (std::vector<hsize_t>{2, kContext}));
    EXPECT_EQ(tokens.values, std::vector(stream.begin(), stream.begin() + 2 * kContext));
    EXPECT_EQ(file.integers("targets").values, std::vector(stream.begin() + 1, stream.begin() + 1 + 2 * kContext));
  }
  const test::Hdf5File all(model / "all.h5");
  std::vector<std::int32_t> targets(stream.begin() + 1, stream.end());
  targets.resize(3 * kContext, -1);
  EXPECT_EQ(all.integers("targets").values, targets);
  std::vector<float> first = all.floats("logits").values;
  first.resize(2 * kContext * kVocab);
  EXPECT_EQ(test::Hdf5File(model / "logits.h5").floats("logits").values, first);
}

TEST(EvaluationDumps, ATiedModelHasTheGradientOfOneEmbedding) {
  const EvaluatedModel model("nested-tied-window");
  model.evaluated({"--dump-gradients", "gradients.h5"});
  const test::Hdf5File file(model / "gradients.h5");
  EXPECT_EQ(file.names().count("model.embed_tokens.weight"), 1);
  EXPECT_EQ(file.names().count("lm_head.weight"), 0);
}

TEST(EvaluationDumps, SayWhatWasComputed) {
  const EvaluatedModel model("nested-tied-window");
  model.evaluated({"--passes", "5", "--passes-without-gradient", "1", "--passes-with-gradient", "3", "--precision",
                   "bf16", "--dump-logits", "logits.h5", "--dump-gradients", "gradients.h5"});
  for (const auto& [name, passes] : {std::pair{"logits.h5", 5}, std::pair{"gradients.h5", 4}}) {
    const test::Hdf5File file(model / name);
    EXPECT_EQ(file.text("map"), "3s_1_5_5_3s_5");
    EXPECT_THAT(file.text("model"), HasSubstr("vocab: 24"));
    EXPECT_THAT(file.text("created_by"), ::testing::StartsWith("kvloom "));
    EXPECT_EQ(file.text("dtype"), "bf16");
    EXPECT_EQ(file.text("part"), "training");
    EXPECT_EQ(file.text("data"), TokenFile(model / "tokens.h5").identity());
    EXPECT_EQ(file.integer("m"), 1);
    EXPECT_EQ(file.integer("b"), 3);
    EXPECT_EQ(file.integer("passes"), passes);
    EXPECT_EQ(file.integer("counted_targets"), 27);
  }
}

TEST(EvaluationDumps, PassesOfTheGradientAreTheModelsUnlessGiven) {
  const EvaluatedModel model("pizza-top-2");
  const auto gradient = [&](const Words& passes) {
    Words words = passes;
    words.insert(words.end(), {"--dump-gradients", "gradients.h5"});
    model.evaluated(words);
    return test::Hdf5File(model / "gradients.h5").floats("model.layers.5.self_attn.k_proj.weight").values;
  };
  const std::vector<float> own = gradient({});
  EXPECT_EQ(gradient({"--passes-without-gradient", "2", "--passes-with-gradient", "2"}), own);
  EXPECT_EQ(gradient({"--passes", "9"}), own) << "these are the loss's and the logits'";
  EXPECT_GT(difference(gradient({"--passes-without-gradient", "1", "--passes-with-gradient", "3"}), own), 1e-3)
      << "as many passes, of which one more carries gradient";
}

TEST(EvaluationDumps, WhatCannotBeDumpedIsRefusedWithOneLine) {
  const EvaluatedModel model("pizza-top-2");
  fs::create_directory(model / "folder");
  for (const auto& [words, reason] : std::vector<std::pair<Words, std::string>>{
           {{"--sequential", "--dump-gradients", "g.h5"}, "--sequential"},
           {{"--dump-logits", "missing/l.h5"}, "missing/l.h5 cannot be written: there is no folder missing"},
           {{"--dump-gradients", "missing/g.h5"}, "missing/g.h5 cannot be written: there is no folder missing"},
           {{"--dump-logits", "l.h5", "--dump-gradients", "folder"}, "folder cannot be written: it is a folder"},
           {{"--dump-logits", "a.h5", "--dump-gradients", "./a.h5"}, "name two files"},
           {{"--dump-logits", "./tokens.h5"}, "token file"},
           {{"--dump-logits", "l.h5", "--limit", "0"}, "--limit: 0 sequences; right is 1 or more"},
           {{"--limit", "0"}, "--limit: 0"},
           {{"--dump-logits", "l.h5", "--passes", "0"}, "--passes: 0"},
           {{"--dump-gradients", "g.h5", "--passes-with-gradient", "0"}, "--passes-with-gradient"}}) {
    const test::ProcessResult result = model.kvloom(model.eval(words));
    EXPECT_EQ(result.status, 2) << result.error;
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    EXPECT_THAT(result.error, HasSubstr(reason));
    EXPECT_EQ(model.dumps(), std::set<std::string>{"folder"});
  }
  EXPECT_EQ(model.evaluated({})["sequences"], 3) << "nothing was lost";
}

TEST(EvaluationDumps, SeveralRanksAreRefused) {
  if (!test::has_mpirun()) GTEST_SKIP() << "no mpirun";
  const EvaluatedModel model("pizza-top-2");
  Words program = model.eval({"--dump-logits", "l.h5"});
  program.insert(program.begin(), KVLOOM_BINARY);
  test::ProcessOptions options;
  options.folder = model / "";
  const test::ProcessResult result = test::run_process(test::mpirun(2, program), options);
  EXPECT_EQ(result.status, 2) << result.error;
  EXPECT_THAT(result.error, HasSubstr("one rank"));
  EXPECT_EQ(model.dumps(), std::set<std::string>{});
}

TEST(EvaluationDumps, AKilledRunLeavesNoFileThatOpensAndTheNextOneWorks) {
  test::Random random;
  const EvaluatedModel model("lasagna-top-3");
  model.write_tokens(random.tokens(2'000'000, kVocab));
  const Words words = model.eval({"--dump-logits", "l.h5", "--dump-gradients", "g.h5"});
  for (int run = 0; run < 3; ++run) {
    test::ProcessOptions options;
    options.signal = {SIGKILL, test::Milliseconds(random.integer(0, 200))};
    options.signal_after = [&] { return !model.dumps().empty(); };
    ASSERT_EQ(model.kvloom(words, options).status, -SIGKILL) << "it was over before it was killed";
    for (const std::string& name : model.dumps()) {
      EXPECT_TRUE(name.starts_with(".")) << name;
      EXPECT_FALSE(test::Hdf5File::opens(model / name)) << name;
    }
  }
  model.evaluated({"--limit", "1", "--dump-logits", "l.h5", "--dump-gradients", "g.h5"});
  EXPECT_EQ(model.dumps(), (std::set<std::string>{"l.h5", "g.h5"}));
  EXPECT_TRUE(test::Hdf5File::opens(model / "l.h5"));
}

TEST(EvaluationDumps, AFullDiskIsReportedAndKeepsWhatWasThere) {
  test::Random random;
  const EvaluatedModel model("lasagna-top-3");
  model.evaluated({"--dump-logits", "l.h5", "--dump-gradients", "g.h5"});
  const std::string logits = read_bytes(model / "l.h5");
  const std::string gradients = read_bytes(model / "g.h5");
  model.write_tokens(random.tokens(2000, kVocab));
  for (const rlim_t room : {rlim_t{1000}, rlim_t{4000}, rlim_t{20'000}, rlim_t{60'000}}) {
    test::ProcessOptions options;
    options.largest_file = room;
    const test::ProcessResult result =
        model.kvloom(model.eval({"--dump-logits", "l.h5", "--dump-gradients", "g.h5"}), options);
    EXPECT_EQ(result.status, 1) << room;
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    EXPECT_THAT(result.error, ::testing::AllOf(HasSubstr(".h5"), HasSubstr("File too large")));
    EXPECT_EQ(model.dumps(), (std::set<std::string>{"l.h5", "g.h5"}));
    EXPECT_EQ(read_bytes(model / "l.h5"), logits);
    EXPECT_EQ(read_bytes(model / "g.h5"), gradients);
  }
}

}  // namespace
}  // namespace kvloom
