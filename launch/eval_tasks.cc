#include "launch/eval_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/config.h"
#include "core/device_choice.h"
#include "core/quantity_text.h"
#include "infer/evaluation/evaluation.h"
#include "infer/evaluation/results.h"
#include "infer/generation/model_identity.h"
#include "infer/tokenizer.h"
#include "launch/at_least.h"
#include "launch/memory_advice.h"
#include "launch/passes_option.h"
#include "launch/ranks.h"
#include "launch/terminal.h"
#include "train/output_lock.h"

namespace kvloom {
namespace {

class TaskProgress {
 public:
  ~TaskProgress() { line_.end(); }

  void show(const EvaluationProgress& progress) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const double rate = static_cast<double>(progress.done) / seconds;
    const double left = static_cast<double>(progress.total - progress.done) / rate;
    line_.update(fmt::format("{}/{} batches  {} tokens/s  {} left", progress.batches_done, progress.batches,
                             format_count(rate), format_seconds(left)));
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  ProgressLine line_;
};

// Of one pass with gradient: how many carry one says nothing to a score.
ScoringOptions scoring_of(const EvalModelOptions& choice, const proto::Manifest& manifest) {
  ScoringOptions scoring = choice.scoring(manifest);
  const int all = passes_that_run(ModelConfig::from_proto(manifest.model()).kv_map, scoring.passes, 2 * kMostPasses);
  scoring.passes = {.without_gradient = all - 1, .with_gradient = 1};
  return scoring;
}

EvaluationRun describe(const EvalTasks& tasks, const EvalModelOptions& choice, const ScoringOptions& scoring,
                       const proto::Manifest& manifest) {
  const nlohmann::ordered_json passes =
      choice.sequential ? nlohmann::ordered_json()
                        : nlohmann::ordered_json(scoring.passes.without_gradient + scoring.passes.with_gradient);
  return {.model = choice.checkpoint,
          .arguments = {{"pretrained", choice.checkpoint},
                        {"step", manifest.training().step()},
                        {"dtype", choice.precision},
                        {"weights", choice.weights_name()},
                        {"kv_dtype", choice.kv_name()},
                        {"device", choice.device.name},
                        {"form", choice.sequential ? "sequential" : "parallel"},
                        {"passes", passes},
                        {"batch_tokens", tasks.batch_tokens}},
          .limit = choice.limit.has_value() ? nlohmann::ordered_json(*choice.limit) : nlohmann::ordered_json()};
}

void report(const EvalTasks& tasks, const EvalModelOptions& choice, std::span<const TaskResult> results,
            const EvaluationRun& run) {
  const nlohmann::ordered_json json = results_json(results, run);
  if (!tasks.output.empty()) write_results(tasks.output, results, json);
  if (choice.json) {
    fmt::print("{}\n", json.dump(2));
    return;
  }
  fmt::print("{}", results_table(results));
  if (!tasks.output.empty()) fmt::print("wrote {}\n", tasks.output);
}

// Rank 0's, of the folder that it keeps progress and results in.
std::optional<OutputLock> lock_output(const Communicator& ranks, const EvalTasks& tasks) {
  if (tasks.output.empty() || ranks.rank() != 0) return std::nullopt;
  return std::optional<OutputLock>(std::in_place, tasks.output, kEvaluationLock);
}

void evaluate_on(World& world, const EvalTasks& tasks, const EvalModelOptions& choice) {
  Communicator& ranks = world.communicator();
  const std::optional<OutputLock> lock = lock_output(ranks, tasks);
  const Device device = choice.device.of(world);
  // Task files first: what is wrong with them is known before a large model is read.
  const std::vector<Task> files = read_task_files(tasks.files);
  const std::unique_ptr<Allocator> allocator = make_allocator(device, choice.device.setting(world));
  const EvalModel model(choice, *allocator);
  const proto::Manifest& manifest = model.manifest();
  const std::unique_ptr<Tokenizer> tokenizer =
      make_tokenizer(manifest.tokenizer_kind(), manifest.tokenizer(), choice.checkpoint);
  const ScoringOptions scoring = scoring_of(choice, manifest);
  EvaluationOptions options{.scoring = scoring,
                            .batch_tokens = tasks.batch_tokens,
                            .limit = choice.limit,
                            .output = tasks.output,
                            .start = tasks.resume == "auto" ? EvaluationStart::kResume : EvaluationStart::kFresh,
                            // Of a Hugging Face folder every byte is read for it.
                            .model_identity = tasks.output.empty()
                                                  ? std::string()
                                                  : fmt::format("{:016x}", model_identity(choice.checkpoint))};
  TaskProgress progress;
  if (ranks.rank() == 0) {
    options.on_batch = [&](const EvaluationProgress& now) { progress.show(now); };
    options.warn = [](const std::string& warning) { fmt::print(stderr, "{}\n", warning); };
  }
  const std::vector<TaskResult> results = evaluate_tasks(model.scorer(), *tokenizer, files, options, ranks);
  if (ranks.rank() == 0) report(tasks, choice, results, describe(tasks, choice, scoring, manifest));
}

}  // namespace

const char* const kEvalTasksFooter =
    "Tasks: a task file is JSON lines. The first may be a header, {\"task\": NAME} and, if wanted, kind,\n"
    "metrics, version, grid and target_delimiter: what stands between context and choice or target, ' ' for multiple\n"
    "choice and nothing for a target where the header does not say. Items are one of\n"
    "  {\"context\": .., \"choices\": [..], \"answer\": 0}              multiple choice: acc, acc_norm, acc_bytes\n"
    "  {\"contexts\": [..], \"continuation\": .., \"answer\": 0}        ... whose contexts differ (WinoGrande)\n"
    "  {\"context\": .., \"target\": ..}                              last word (LAMBADA): perplexity, acc\n"
    "  {\"text\": ..}                                               perplexity by word, byte and token, bits per byte\n"
    "They are scored as EleutherAI's lm-evaluation-harness scores them. --output DIR writes its results.json and\n"
    "samples_<task>.jsonl, and keeps progress there. infer/evaluation/README.md says more.\n";

void EvalTasks::add_to(CLI::App& verb) {
  CLI::Option* tasks =
      verb.add_option("--tasks", files, "Task files (.jsonl), instead of --data; below, prepare and needle make some");
  verb.add_option("--output", output, "With --tasks: folder for results, samples and progress")->needs(tasks);
  verb.add_option("--resume", resume, "With --tasks: auto: go on with the evaluation in --output, if there is one")
      ->needs(tasks)
      ->check(CLI::IsMember({"auto", "no"}))
      ->capture_default_str();
  verb.add_option("--batch-tokens", batch_tokens, "With --tasks: tokens that the model reads at once, at most")
      ->needs(tasks)
      ->check(at_least(1))
      ->capture_default_str();
}

void evaluate_task_files(const EvalTasks& tasks, const EvalModelOptions& choice) {
  if (tasks.resume == "auto" && tasks.output.empty()) {
    reject_input("--resume auto: goes on with what is in --output, which is not given");
  }
  run_in_world([&](World& world) { with_memory_advice(kEvalTasksMemory, [&] { evaluate_on(world, tasks, choice); }); });
}

}  // namespace kvloom
