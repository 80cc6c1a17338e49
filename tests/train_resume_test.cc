// Runs that are interrupted go on as if they had not been.
#include <gtest/gtest.h>

#include <fmt/format.h>
#include <sys/stat.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/checkpoint_folder.h"
#include "core/checkpoint_reader.h"
#include "data/token_file.h"
#include "tests/support/plain_rights.h"
#include "tests/support/random.h"
#include "tests/support/sanitized.h"
#include "tests/support/tiny_run.h"

namespace kvloom {
namespace {

constexpr const char* kFinal = "step-00000020";

void expect_equal_tensors(const std::filesystem::path& a, const std::filesystem::path& b) {
  CheckpointReader first(a);
  CheckpointReader second(b);
  ASSERT_EQ(first.manifest().tensors_size(), second.manifest().tensors_size());
  for (const proto::TensorEntry& tensor : first.manifest().tensors()) {
    std::int64_t count = 1;
    for (const std::int64_t size : tensor.shape()) count *= size;
    std::vector<float> left(static_cast<std::size_t>(count));
    std::vector<float> right(left.size());
    first.read(tensor.name(), DType::kF32, left.data());
    second.read(tensor.name(), DType::kF32, right.data());
    EXPECT_EQ(left, right) << tensor.name();
  }
}

TEST(Resume, AfterManyKillsTheLossesAreThoseOfAnUninterruptedRun) {
  test::Random random;
  test::TinyRun run;
  ASSERT_EQ(run.tokenized.status, 0) << run.tokenized.error;
  const auto start = std::chrono::steady_clock::now();
  const test::ProcessResult whole = run.train({"--set", "output.directory=whole"});
  const auto length =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start).count();
  ASSERT_EQ(whole.status, 0) << whole.error;
  int killed = 0;
  const int rounds = test::repetitions(20, 6, "kills");
  for (int round = 0; round < rounds; ++round) {
    test::ProcessOptions options;
    options.signal = {SIGKILL, std::chrono::milliseconds(random.integer(0, length))};
    const test::ProcessResult result = run.train({"--resume", "auto"}, options);
    ASSERT_TRUE(result.status == 0 || result.status == -SIGKILL) << result.error;
    if (result.status == -SIGKILL) ++killed;
    if (result.status == 0) {  // begin anew, so that later rounds have something to kill
      EXPECT_EQ(run.losses("out"), run.losses("whole"));
      std::filesystem::remove_all(run / "out");
    }
  }
  EXPECT_GT(killed, 0);
  const test::ProcessResult last = run.train({"--resume", "auto"});
  ASSERT_EQ(last.status, 0) << last.error;
  EXPECT_EQ(run.losses("out").size(), 20u);
  EXPECT_EQ(run.losses("out"), run.losses("whole"));
  expect_equal_tensors(run / "out" / kFinal, run / "whole" / kFinal);
}

TEST(Resume, EverySettingThatIsAnotherIsNamed) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--stop-after", "2"}).status, 0);
  const test::ProcessResult same = run.train({"--resume", "auto", "--stop-after", "3"});
  ASSERT_EQ(same.status, 0) << same.error;
  EXPECT_NE(same.error.find("resumed from out/step-00000002\n"), std::string::npos) << same.error;
  const test::ProcessResult other =
      run.train({"--resume", "auto", "--stop-after", "4", "--set", "train.learning_rate=1e-3", "--set",
                 "train.steps=30", "--set", "train.schedule=CONSTANT", "--set", "passes.without_gradient=3"});
  ASSERT_EQ(other.status, 0) << other.error;
  EXPECT_NE(other.error.find("resumed from out/step-00000003 with train.steps 20 -> 30, "
                             "train.learning_rate 0.003 -> 0.001, train.schedule COSINE -> CONSTANT, "
                             "train.minimum_learning_rate 0.0003 -> 0.0001, train.decay_steps 2 -> 3, "
                             "passes.without_gradient 2 -> 3\n"),
            std::string::npos)
      << other.error;
}

// Damage that a file's size does not show is found when it is read. What to lose for it, only the user can say.
TEST(Resume, ADamagedCheckpointStopsTheRunWhichSaysHowToGoOn) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=4"}).status, 0);
  const auto damage = [&](const std::string& step) {
    std::fstream file(run / ("out/" + step) / "shard-0-0.h5", std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(1000);
    const int byte = file.get();
    file.seekp(1000);
    file.put(static_cast<char>(byte ^ 1));
  };
  const std::vector<std::string> on = {"--resume", "auto", "--stop-after", "4"};
  damage("step-00000004");
  const test::ProcessResult stopped = run.train(on);
  EXPECT_EQ(stopped.status, 2);
  EXPECT_NE(stopped.error.find("step-00000004/shard-0-0.h5 is damaged"), std::string::npos) << stopped.error;
  EXPECT_NE(stopped.error.find("; remove out/step-00000004 to go on from the one before, out/step-00000002\n"),
            std::string::npos)
      << stopped.error;
  EXPECT_EQ(stopped.error_lines(), 1) << stopped.error;
  std::filesystem::remove_all(run / "out/step-00000004");
  damage("step-00000002");
  const test::ProcessResult none = run.train(on);
  EXPECT_EQ(none.status, 2);
  EXPECT_NE(none.error.find("step-00000002/shard-0-0.h5 is damaged"), std::string::npos) << none.error;
  EXPECT_EQ(none.error.find("remove"), std::string::npos) << none.error;
}

// A whole one, which only cannot be read now: nobody is told to remove it.
TEST(Resume, ACheckpointThatCannotBeOpenedStopsTheRunAndIsKept) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=4"}).status, 0);
  std::filesystem::permissions(run / "out/step-00000004/shard-0-0.h5", std::filesystem::perms::none);
  if (!test::has_plain_rights(run.path())) GTEST_SKIP() << "setpriv cannot give up root's rights";
  const test::ProcessResult stopped = test::run_with_plain_rights(
      {KVLOOM_BINARY, "train", "--config", "run.pbtxt", "--set", "data.tokens=tokens.h5", "--resume", "auto"},
      {.folder = run.path()});
  EXPECT_EQ(stopped.status, 2) << stopped.error;
  EXPECT_NE(stopped.error.find("shard-0-0.h5"), std::string::npos) << stopped.error;
  EXPECT_EQ(stopped.error.find("remove"), std::string::npos) << stopped.error;
}

TEST(Resume, AfterStoppingOnPurposeNothingDiffers) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "output.directory=whole"}).status, 0);
  ASSERT_EQ(run.train({"--stop-after", "7"}).status, 0);
  EXPECT_EQ(run.losses("out").size(), 7u);
  EXPECT_EQ(CheckpointReader(run / "out/step-00000007").manifest().training().step(), 7u);
  ASSERT_EQ(run.train({"--resume", "auto"}).status, 0);
  EXPECT_EQ(run.losses("out"), run.losses("whole"));
  expect_equal_tensors(run / "out" / kFinal, run / "whole" / kFinal);
}

TEST(Resume, SigtermFinishesTheStepAndSaves) {
  test::TinyRun run;
  test::ProcessOptions options;
  options.signal = {SIGTERM, std::chrono::milliseconds(100)};
  options.signal_after = [&] { return !run.losses("out").empty(); };
  const test::ProcessResult stopped = run.train(
      {"--set", "train.steps=100000", "--set", "train.evaluate_every=0", "--set", "output.checkpoint_every=0"},
      options);
  EXPECT_EQ(stopped.status, 0) << stopped.error;
  const std::size_t done = run.losses("out").size();
  EXPECT_GT(done, 0u);
  EXPECT_LT(done, 100000u);
  EXPECT_NE(stopped.error.find("--resume auto"), std::string::npos) << stopped.error;
  const std::vector<CheckpointPlace> saved = list_checkpoints(run / "out");
  ASSERT_EQ(saved.size(), 1u);
  EXPECT_EQ(saved.front().step, done);
  EXPECT_EQ(CheckpointReader(saved.front().folder).manifest().training().step(), done);
}

TEST(Resume, ThereIsNoStoppingAfterNoStep) {
  test::TinyRun run;
  const test::ProcessResult refused = run.train({"--stop-after", "0"});
  EXPECT_EQ(refused.status, 2);
  EXPECT_NE(refused.error.find("--stop-after"), std::string::npos) << refused.error;
  EXPECT_FALSE(std::filesystem::exists(run / "out"));
}

// An evaluation of tens of seconds, or a step of them.
const std::vector<std::string> kLongEvaluation = {"--set", "data.validation_tokens=long.h5", "--set",
                                                  "train.evaluation_sequences=1000000"};
const std::vector<std::string> kLongStep = {"--set", "train.global_batch=40000", "--set", "train.micro_batch=400",
                                            "--set", "train.evaluate_every=0"};

void write_long_tokens(const test::TinyRun& run) {
  std::ofstream text(run / "long.txt");
  for (int line = 0; line < 100000; ++line) text << "line " << line << " of a text\n";
  text.close();
  const test::ProcessResult made = run.kvloom(
      {"tokenize", "--input", "long.txt", "--tokenizer", "bytes", "--valid-fraction", "0.5", "--output", "long.h5"});
  ASSERT_EQ(made.status, 0) << made.error;
}

// Sent once training has begun, that is once it has said of what.
test::ProcessOptions signal_to(const test::TinyRun& run, int signal, std::size_t steps) {
  test::ProcessOptions options;
  options.signal = {signal, std::chrono::milliseconds(200)};
  std::filesystem::remove(run / "stderr.txt");  // of the run before
  options.signal_after = [&run, steps] {
    return test::content_of(run / "stderr.txt").find(" parameters, ") != std::string::npos &&
           run.losses("out").size() >= steps;
  };
  return options;
}

TEST(Signals, StopAnEvaluationThatIsUnderWay) {
  test::TinyRun run;
  write_long_tokens(run);
  const test::ProcessResult first = run.train(kLongEvaluation, signal_to(run, SIGTERM, 0));
  EXPECT_EQ(first.status, 0) << first.error;
  EXPECT_LT(first.after_signal, std::chrono::seconds(5));
  EXPECT_NE(first.error.find("nothing to save"), std::string::npos) << first.error;
  EXPECT_TRUE(list_checkpoints(run / "out").empty());
}

std::vector<std::string> evaluated_at_four(std::vector<std::string> more) {
  more.insert(more.end(), {"--resume", "auto", "--set", "train.steps=6", "--set", "train.evaluate_every=4", "--set",
                           "output.checkpoint_every=0"});
  return more;
}

// The one that was left off decides which checkpoint is best as it would have.
TEST(Signals, AnEvaluationThatWasLeftOffIsDoneOnResuming) {
  test::TinyRun run;
  write_long_tokens(run);
  const std::vector<std::string> few = evaluated_at_four({"--set", "output.directory=whole"});
  ASSERT_EQ(run.train(few).status, 0);
  // Stopped at 3, so that the evaluation before the first step need not be long too.
  ASSERT_EQ(run.train(evaluated_at_four({"--stop-after", "3"})).status, 0);
  const test::ProcessResult stopped = run.train(evaluated_at_four(kLongEvaluation), signal_to(run, SIGUSR1, 3));
  ASSERT_EQ(stopped.status, 0) << stopped.error;
  const CheckpointReader saved(run / "out/step-00000004");
  EXPECT_TRUE(saved.manifest().training().evaluation_pending());
  EXPECT_EQ(saved.manifest().training().best_step(), 0u);
  ASSERT_EQ(run.train(evaluated_at_four({"--stop-after", "4"})).status, 0);
  EXPECT_EQ(test::content_of(run / "out/best"), "step-00000004\n");
  EXPECT_FALSE(CheckpointReader(run / "out/step-00000004").manifest().training().evaluation_pending());
  ASSERT_EQ(run.train(evaluated_at_four({})).status, 0);
  EXPECT_EQ(run.losses("out"), run.losses("whole"));
  EXPECT_EQ(run.validation_losses("out"), run.validation_losses("whole"));
  EXPECT_EQ(test::content_of(run / "out/best"), test::content_of(run / "whole/best"));
  expect_equal_tensors(run / "out/step-00000006", run / "whole/step-00000006");
}

// `options`, with `first` sent before its signal.
test::ProcessOptions after_another(test::ProcessOptions options, int first) {
  options.signal_to = [first](pid_t process) {
    kill(process, first);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return process;
  };
  return options;
}

TEST(Signals, ASecondSigtermEndsTheProcessAtOnce) {
  test::TinyRun run;
  for (const int first : {SIGINT, SIGTERM}) {
    const test::ProcessResult ended = run.train(kLongStep, after_another(signal_to(run, SIGTERM, 0), first));
    EXPECT_EQ(ended.status, -SIGTERM) << ended.error;
    EXPECT_LT(ended.after_signal, std::chrono::seconds(2));
    std::filesystem::remove_all(run / "out");
  }
}

// Launchers send it more than once.
TEST(Signals, ASecondSigusr1AsksAgain) {
  test::TinyRun run;
  const std::vector<std::string> steps = {"--set", "train.global_batch=100", "--set", "train.steps=100000",
                                          "--set", "train.evaluate_every=0", "--set", "output.checkpoint_every=0"};
  const test::ProcessResult stopped = run.train(steps, after_another(signal_to(run, SIGUSR1, 0), SIGUSR1));
  EXPECT_EQ(stopped.status, 0) << stopped.error;
  EXPECT_EQ(list_checkpoints(run / "out").size(), 1u);
}

TEST(Signals, EndTheProcessAtOnceWhileItOpensFiles) {
  test::TinyRun run;
  ASSERT_EQ(mkfifo((run / "endless.pbtxt").c_str(), 0600), 0);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    test::ProcessOptions options;
    options.signal = {signal, std::chrono::milliseconds(300)};
    options.time_limit = std::chrono::seconds(20);
    const test::ProcessResult ended = run.kvloom({"train", "--config", "endless.pbtxt"}, options);
    EXPECT_EQ(ended.status, -signal) << ended.error;
    EXPECT_LT(ended.after_signal, std::chrono::seconds(2));
  }
}

TEST(Metrics, HoldWhatEveryEvaluationMeasured) {
  test::TinyRun run;
  const test::ProcessResult result = run.train({"--set", "train.steps=5", "--set", "train.evaluate_every=2"});
  ASSERT_EQ(result.status, 0);
  const std::vector<std::string> lines = run.metrics("out");
  ASSERT_EQ(lines.size(), 6u);  // the first is of step 0
  for (std::size_t step = 0; step < lines.size(); ++step) {
    const auto line = nlohmann::json::parse(lines[step]);
    EXPECT_EQ(line["step"], step);
    EXPECT_EQ(line.contains("loss"), step > 0) << line;
    EXPECT_EQ(line.contains("validation_loss"), step % 2 == 0 || step == 5) << line;
    if (!line.contains("validation_loss")) continue;
    const double loss = line["validation_loss"];
    EXPECT_NEAR(line["validation_perplexity"].get<double>(), std::exp(loss), 1e-9 * std::exp(loss));
    EXPECT_NE(result.error.find(fmt::format("step {}  validation loss {:.4f}", step, loss)), std::string::npos);
  }
}

// A run can end after a checkpoint is in place and before its mark is.
TEST(Resume, TheBestCheckpointIsMarkedThoughARunEndedBeforeItsMark) {
  test::TinyRun run;
  const std::vector<std::string> words = {"--resume",      "auto",  "--set",
                                          "train.steps=4", "--set", "train.evaluate_every=2"};
  ASSERT_EQ(run.train(words).status, 0);
  const std::string best = test::content_of(run / "out/best");
  const CheckpointReader last(run / "out/step-00000004");
  ASSERT_EQ(best, "step-00000004\n");
  EXPECT_EQ(last.manifest().training().best_step(), 4u);
  for (const char* before : {"step-00000002\n", ""}) {
    std::filesystem::remove(run / "out/best");
    if (*before != '\0') std::ofstream(run / "out/best") << before;
    ASSERT_EQ(run.train(words).status, 0);
    EXPECT_EQ(test::content_of(run / "out/best"), best) << before;
  }
}

// What comes after the best one and is worse must not push it out.
TEST(Resume, TheBestCheckpointIsKeptThoughARunEndedBeforeItsMark) {
  test::TinyRun run;
  const std::vector<std::string> words = {"--resume", "auto",          "--set", "train.evaluate_every=2",
                                          "--set",    "output.keep=1", "--set", "output.checkpoint_every=1"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), words.begin(), words.end());
    return run.train(more).status;
  };
  ASSERT_EQ(with({"--set", "train.steps=4"}), 0);
  ASSERT_EQ(test::content_of(run / "out/best"), "step-00000004\n");
  std::filesystem::remove(run / "out/best");
  ASSERT_EQ(with({"--set", "train.steps=8", "--set", "train.learning_rate=30", "--set", "train.warmup_steps=0"}), 0);
  EXPECT_EQ(test::content_of(run / "out/best"), "step-00000004\n");
  EXPECT_EQ(CheckpointReader(run / "out/step-00000004").manifest().training().step(), 4u);
  EXPECT_EQ(list_checkpoints(run / "out").size(), 2u);
}

TEST(Resume, WhereTheBestCheckpointIsLostTheBestOfTheOthersIsMarked) {
  test::TinyRun run;
  const std::vector<std::string> words = {"--resume", "auto",         "--set", "train.evaluate_every=2",
                                          "--set",    "output.keep=0"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), words.begin(), words.end());
    return run.train(more).status;
  };
  ASSERT_EQ(with({"--set", "train.steps=4"}), 0);
  ASSERT_EQ(with({"--set", "train.steps=8", "--set", "train.learning_rate=30", "--set", "train.warmup_steps=0"}), 0);
  ASSERT_EQ(test::content_of(run / "out/best"), "step-00000004\n");
  std::filesystem::remove_all(run / "out/step-00000004");
  ASSERT_EQ(with({"--set", "train.steps=8"}), 0);
  EXPECT_EQ(test::content_of(run / "out/best"), "step-00000002\n");
}

TEST(Checkpoints, NameTheProgramAndItsVersion) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=1"}).status, 0);
  const test::ProcessResult version = run.kvloom({"--version"});
  EXPECT_EQ(CheckpointReader(run / "out/step-00000001").manifest().created_by() + "\n", version.output);
}

TEST(Resume, AStepFolderThatIsNoWholeCheckpointDoesNotStopTheRun) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=4"}).status, 0);
  std::filesystem::remove(run / "out/step-00000004/manifest.pb");
  std::ofstream(run / "out/step-00000004/notes.txt") << "mine";
  const test::ProcessResult result = run.train({"--set", "train.steps=8", "--resume", "auto"});
  EXPECT_EQ(result.status, 0) << result.error;
  EXPECT_NE(result.error.find("it is out/step-00000004.set-aside now"), std::string::npos) << result.error;
  EXPECT_EQ(test::content_of(run / "out/step-00000004.set-aside/notes.txt"), "mine");
  std::filesystem::remove(run / "out/step-00000008/manifest.pb");
  EXPECT_EQ(run.train({"--set", "train.steps=8", "--resume", "auto"}).status, 0);
  CheckpointReader(run / "out/step-00000008").verify_all();
}

// What is best goes with its checkpoint, where the run goes on from an older one.
TEST(Resume, AMarkOnADamagedCheckpointIsTakenAway) {
  test::TinyRun run;
  const std::vector<std::string> four = {"--set", "train.steps=4", "--set", "train.evaluate_every=4"};
  ASSERT_EQ(run.train(four).status, 0);
  ASSERT_EQ(best_checkpoint(run / "out")->step, 4u);
  std::filesystem::resize_file(run / "out/step-00000004/shard-0-0.h5", 100);
  std::vector<std::string> on = four;
  on.insert(on.end(), {"--resume", "auto", "--stop-after", "3"});
  const test::ProcessResult result = run.train(on);
  ASSERT_EQ(result.status, 0) << result.error;
  EXPECT_FALSE(std::filesystem::exists(run / "out/best"));
  EXPECT_EQ(run.kvloom({"generate", "--checkpoint", "out", "--prompt", "a"}).status, 0) << "the newest whole one";
}

TEST(Resume, WhereNoCheckpointIsWholeTheRunStopsAndTouchesNothing) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=4", "--set", "train.evaluate_every=4"}).status, 0);
  for (const char* step : {"step-00000002", "step-00000004"}) {
    std::filesystem::resize_file(run / "out" / step / "shard-0-0.h5", 100);
  }
  const std::string metrics = test::content_of(run / "out/metrics.jsonl");
  const test::ProcessResult result = run.train({"--set", "train.steps=8", "--resume", "auto"});
  EXPECT_EQ(result.status, 2) << result.error;
  EXPECT_EQ(result.error_lines(), 1) << result.error;
  EXPECT_NE(result.error.find("'out' holds 2 checkpoints and none is whole"), std::string::npos) << result.error;
  EXPECT_EQ(test::content_of(run / "out/metrics.jsonl"), metrics);
  EXPECT_EQ(test::content_of(run / "out/best"), "step-00000004\n");
  EXPECT_EQ(run.train({"--set", "train.steps=8", "--resume", "auto", "--set", "output.directory=new"}).status, 0);
}

TEST(Train, SaysWhatItTrainsAndHowItWent) {
  test::TinyRun run;
  const test::ProcessResult first = run.train({"--set", "train.steps=4", "--stop-after", "2"});
  for (const char* part :
       {"model: ", " parameters, 4 layers, 3 KV layers (0_2_2_3), f32 compute\n",
        "mesh: data 1 x pipeline 1 x tensor 1, 1 rank on cpu\n", "data: tokens.h5, ", "128 tokens a step, 4 steps, ",
        "output: out\n", "2 steps in ", "stopped; go on with --resume auto\n"}) {
    EXPECT_NE(first.error.find(part), std::string::npos) << part << "\n" << first.error;
  }
  const test::ProcessResult second = run.train({"--set", "train.steps=4", "--resume", "auto"});
  for (const char* part : {"output: out; resumed from out/step-00000002", "2 steps in ", "best validation loss ",
                           " at step 4\ncheckpoints and metrics.jsonl are in out\n"}) {
    EXPECT_NE(second.error.find(part), std::string::npos) << part << "\n" << second.error;
  }
  const test::ProcessResult third = run.train({"--set", "train.steps=4", "--resume", "auto"});
  EXPECT_EQ(third.status, 0);
  EXPECT_NE(third.error.find("all 4 steps were done before; raise train.steps to go on\n"), std::string::npos)
      << third.error;
}

TEST(Train, ProgressFitsEightyColumns) {
  test::TinyRun run;
  const test::ProcessResult result = run.train();
  std::istringstream lines(result.error);
  int steps = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" left  step ") == std::string::npos) continue;
    ++steps;
    EXPECT_LE(line.size(), 80u) << line;
  }
  EXPECT_GT(steps, 10);
}

TEST(Metrics, SayWhenAndHowMuchWasTrainedOn) {
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=4", "--stop-after", "2"}).status, 0);
  ASSERT_EQ(run.train({"--set", "train.steps=4", "--resume", "auto"}).status, 0);
  const double training_tokens = static_cast<double>(TokenFile(run / "tokens.h5").count(Part::kTraining));
  double time = 0;
  for (const std::string& line : run.metrics("out")) {
    const nlohmann::json fields = nlohmann::json::parse(line);
    if (!fields.contains("loss")) continue;
    const double tokens = fields["step"].get<double>() * 4 * 32;
    EXPECT_EQ(fields["tokens"], tokens);
    EXPECT_DOUBLE_EQ(fields["epochs"].get<double>(), tokens / training_tokens);
    EXPECT_GE(fields["time"].get<double>(), time);
    EXPECT_GT(fields["seconds"].get<double>(), 0);
    EXPECT_GT(fields["peak_bytes"].get<double>(), 0);
    time = fields["time"].get<double>();
  }
  EXPECT_GT(time, 1.7e9);
}

TEST(Resume, OneTrainingAtATimeHasAnOutputDirectoryAndDeathGivesItBack) {
  test::TinyRun run;
  std::filesystem::create_directory(run / "beside");
  test::ProcessResult second;
  test::ProcessOptions options;
  options.signal = {SIGKILL, std::chrono::milliseconds(0)};
  options.signal_after = [&] {
    if (run.losses("out").empty()) return false;
    second = test::run_process({KVLOOM_BINARY, "train", "--config", "../run.pbtxt", "--resume", "auto", "--set",
                                "data.tokens=../tokens.h5", "--set", "output.directory=../out"},
                               {.folder = run / "beside"});
    return true;
  };
  const std::vector<std::string> for_long = {"--set", "train.steps=100000", "--set", "output.checkpoint_every=1000"};
  EXPECT_EQ(run.train(for_long, options).status, -SIGKILL);
  EXPECT_EQ(second.status, 2) << second.error;
  EXPECT_EQ(second.error_lines(), 1) << second.error;
  EXPECT_NE(second.error.find("'../out' is being trained into by process "), std::string::npos) << second.error;
  // What a killed save left goes with the next training.
  std::filesystem::create_directories(run / "out/.step-00000099.partial");
  EXPECT_EQ(run.train({"--resume", "auto", "--set", "train.steps=2"}).status, 0);
  EXPECT_FALSE(std::filesystem::exists(run / "out/.step-00000099.partial"));
}

double loss_in(const std::string& line) { return std::stod(line.substr(line.find("\"loss\":") + 7)); }

TEST(Ranks, TwoGiveTheLossesOfOne) {
  if (std::system("command -v mpirun >/dev/null 2>&1") != 0) GTEST_SKIP() << "there is no mpirun";
  test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "output.directory=one"}).status, 0);
  test::ProcessOptions options;
  options.folder = run.path();
  const test::ProcessResult two = test::run_process(
      {"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", KVLOOM_BINARY, "train", "--config", "run.pbtxt"},
      options);
  ASSERT_EQ(two.status, 0) << two.error;
  const auto one = run.losses("one");
  const auto both = run.losses("out");
  ASSERT_EQ(one.size(), 20u);
  ASSERT_EQ(both.size(), 20u);
  for (std::size_t step = 0; step < one.size(); ++step) {
    EXPECT_NEAR(loss_in(both[step]), loss_in(one[step]), 1e-4) << one[step];
  }
}

TEST(Ranks, AFailureTakesAllOfThemDownWithItsMessage) {
  if (std::system("command -v mpirun >/dev/null 2>&1") != 0) GTEST_SKIP() << "there is no mpirun";
  test::TinyRun run;
  test::ProcessOptions options;
  options.folder = run.path();
  const auto start = std::chrono::steady_clock::now();
  const test::ProcessResult result =
      test::run_process({"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", KVLOOM_BINARY, "train",
                         "--config", "run.pbtxt", "--set", "train.learning_rate=1e30"},
                        options);
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.error.find("not finite"), std::string::npos) << result.error;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

}  // namespace
}  // namespace kvloom
