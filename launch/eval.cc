#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "core/config.h"
#include "core/device_choice.h"
#include "core/same_file.h"
#include "core/version.h"
#include "infer/evaluation/file_evaluation.h"
#include "launch/eval_model.h"
#include "launch/eval_tasks.h"
#include "launch/memory_advice.h"
#include "launch/passes_option.h"
#include "launch/ranks.h"
#include "launch/terminal.h"
#include "launch/verbs.h"
#include "train/evaluation_dump.h"
#include "train/loaded_model.h"
#include "train/training_checkpoint.h"

namespace kvloom {
namespace {

struct Options {
  EvalModelOptions model;
  std::string data;
  std::string part = "validation";
  std::string dump_logits;
  std::string dump_gradients;
  std::optional<int> without_gradient;
  std::optional<int> with_gradient;
  bool any_tokenizer = false;

  bool dumps() const { return !dump_logits.empty() || !dump_gradients.empty(); }
  Part part_of_data() const { return part == "training" ? Part::kTraining : Part::kValidation; }
};

// m and b.
Passes gradient_passes(const Options& options, const proto::Manifest& manifest) {
  const Passes trained = passes_of(manifest.passes());
  return {.without_gradient = options.without_gradient.value_or(trained.without_gradient),
          .with_gradient = options.with_gradient.value_or(trained.with_gradient)};
}

void check_dumps(const Options& options) {
  if (!options.dumps()) return;
  if (options.model.sequential && !options.dump_gradients.empty()) {
    reject_input("--dump-gradients: gradients go through passes; take --sequential away");
  }
  if (options.model.rounds()) {
    reject_input("--dump-logits, --dump-gradients: are of what training computes; take --weights and --kv-dtype away");
  }
  if (is_same_file(options.dump_logits, options.dump_gradients)) {
    reject_input("--dump-logits, --dump-gradients: both are '{}'; name two files", options.dump_logits);
  }
  for (const std::string& path : {options.dump_logits, options.dump_gradients}) {
    if (is_same_file(path, options.data)) {
      reject_input("'{}' is the token file --data, which a dump would replace", path);
    }
  }
}

// What was measured, and of which model.
struct DataResult {
  FileLoss loss;
  std::int64_t context = 0;
  std::uint64_t step = 0;
  int passes = 0;  // that ran
};

// Whether the file's tokens are the model's to score.
void check_file(const Options& options, const TokenFile& file, const ModelConfig& config,
                const proto::Manifest& manifest) {
  if (file.used_vocab() > config.vocab) {
    reject_input("--data: '{}' holds token {} of a vocabulary of {}; the model has {}", options.data,
                 file.used_vocab() - 1, file.vocab(), config.vocab);
  }
  if (!options.any_tokenizer) {
    check_tokenizer(tokenizer_of(manifest), options.model.checkpoint, file, options.data, "take --any-tokenizer");
  }
  const Part part = options.part_of_data();
  if (file.count(part) < 2) {
    reject_input("--data: '{}' has {} {} tokens; make more with kvloom tokenize{}", options.data, file.count(part),
                 options.part, part == Part::kValidation ? " --valid-fraction, or take --part training" : "");
  }
}

FileLoss run_with_progress(FileEvaluation& evaluation, const FileEvaluation::Measure& measure, Communicator& ranks,
                           const std::string& what) {
  ProgressLine line;
  FileEvaluation::Progress progress;
  if (ranks.rank() == 0) {
    progress = [&](std::int64_t done, double loss) {
      line.update(fmt::format("{}{}/{} sequences, loss {:.4f}", what, done, evaluation.sequences(), loss));
    };
  }
  const FileLoss loss = evaluation.run(measure, ranks, progress);
  line.end();
  return loss;
}

DataResult result_of(const FileLoss& loss, const ModelConfig& config, const proto::Manifest& manifest,
                     const Passes& passes) {
  return {.loss = loss,
          .context = config.context,
          .step = manifest.training().step(),
          .passes = passes_that_run(config.kv_map, passes, config.context)};
}

DataResult evaluate(const Options& options, const EvalModelOptions& choice, const TokenFile& file, Allocator& allocator,
                    Communicator& ranks, const std::string& what) {
  const EvalModel model(choice, allocator);
  const Scorer& scorer = model.scorer();
  check_file(options, file, scorer.config(), model.manifest());
  const ScoringOptions scoring = choice.scoring(model.manifest());
  FileEvaluation evaluation(file, options.part_of_data(), scorer.config().context, choice.limit);
  const FileLoss loss = run_with_progress(
      evaluation, [&](const EvaluationWindow& window) { return window_nats(scorer, scoring, window); }, ranks, what);
  return result_of(loss, scorer.config(), model.manifest(), scoring.passes);
}

// By the model that training computes: gradients are its alone.
DataResult evaluate_with_dumps(const Options& options, const TokenFile& file, Allocator& allocator,
                               Communicator& ranks) {
  const LoadedModel loaded =
      load_model(options.model.checkpoint, options.model.precision == "bf16" ? DType::kBF16 : DType::kF32, allocator);
  const ModelConfig& config = loaded.model->config();
  check_file(options, file, config, loaded.manifest);
  const Passes passes = passes_for(options.model.passes, gradient_passes(options, loaded.manifest));
  FileEvaluation evaluation(file, options.part_of_data(), config.context, options.model.limit);
  const EvaluationOrigin origin{
      .created_by = program_and_version(),
      .step = loaded.manifest.training().step(),
      .part = options.part,
      .data = file.identity(),
      .sequences = evaluation.sequences(),
      .counted_targets = evaluation.counted_targets(),
      .form = options.model.sequential ? EvaluationForm::kSequential : EvaluationForm::kParallel,
      .passes = passes_that_run(config.kv_map, passes, config.context),
      .gradient_passes = gradient_passes(options, loaded.manifest)};
  EvaluationDumps dumps({.logits = options.dump_logits, .gradients = options.dump_gradients}, *loaded.model, origin,
                        passes);
  const FileLoss loss = run_with_progress(
      evaluation, [&](const EvaluationWindow& window) { return dumps.add(window); }, ranks, "");
  dumps.finish(loss.mean_loss());
  return result_of(loss, config, loaded.manifest, passes);
}

void print_json(const Options& options, const DataResult& result, const std::optional<DataResult>& unrounded) {
  const FileLoss& loss = result.loss;
  nlohmann::ordered_json json{{"loss", loss.mean_loss()},
                              {"perplexity", loss.perplexity()},
                              {"bits_per_byte", loss.bits_per_byte()},
                              {"tokens", loss.tokens},
                              {"sequences", loss.sequences},
                              {"form", options.model.sequential ? "sequential" : "parallel"},
                              {"passes", options.model.sequential ? nlohmann::json() : nlohmann::json(result.passes)},
                              {"step", result.step},
                              {"precision", options.model.precision},
                              {"weights", options.model.weights_name()},
                              {"kv_dtype", options.model.kv_name()}};
  if (unrounded) {
    json["unrounded"] = {{"loss", unrounded->loss.mean_loss()}, {"perplexity", unrounded->loss.perplexity()}};
  }
  fmt::print("{}\n", json.dump(2));
}

void print_result(const Options& options, const DataResult& result, const std::optional<DataResult>& unrounded) {
  if (options.model.json) return print_json(options, result, unrounded);
  const FileLoss& loss = result.loss;
  fmt::print("loss {:.4f} nats/token, perplexity {:.3f}, {:.4f} bits/byte\n", loss.mean_loss(), loss.perplexity(),
             loss.bits_per_byte());
  if (unrounded) {
    const FileLoss& exact = unrounded->loss;
    fmt::print("weights {} and K/V {} cost {:+.5f} nats/token, {:+.3f}% perplexity: {} alone has loss {:.4f}, {:.3f}\n",
               options.model.weights_name(), options.model.kv_name(), loss.mean_loss() - exact.mean_loss(),
               100 * (loss.perplexity() / exact.perplexity() - 1), options.model.precision, exact.mean_loss(),
               exact.perplexity());
  }
  fmt::print("{} tokens in {} sequences of up to {}, {}\n", loss.tokens, loss.sequences, result.context,
             options.model.sequential ? std::string("token by token")
                                      : fmt::format("{} pass{}", result.passes, result.passes == 1 ? "" : "es"));
}

void evaluate_data(const Options& options, World& world) {
  check_dumps(options);
  Communicator& ranks = world.communicator();
  const std::unique_ptr<Allocator> allocator =
      make_allocator(options.model.device.of(world), options.model.device.setting(world));
  const TokenFile file(options.data);
  std::optional<DataResult> unrounded;
  DataResult result;
  if (options.dumps()) {
    result = evaluate_with_dumps(options, file, *allocator, ranks);
  } else {
    result = evaluate(options, options.model, file, *allocator, ranks, "");
    // One model after the other: memory holds the larger one alone.
    if (options.model.rounds()) {
      unrounded = evaluate(options, options.model.unrounded(), file, *allocator, ranks, "without rounding: ");
    }
  }
  if (ranks.rank() == 0) print_result(options, result, unrounded);
}

void evaluate_on_ranks(const Options& options) {
  run_in_world([&](World& world) {
    const int ranks = world.communicator().size();
    if (options.dumps() && ranks > 1) {
      reject_input(
          "--dump-logits, --dump-gradients: these are written by one rank, not {}; start kvloom without mpirun", ranks);
    }
    with_memory_advice(kEvalDataMemory, [&] { evaluate_data(options, world); });
  });
}

void add_dump_options(CLI::App& verb, Options& options) {
  verb.add_option("--dump-logits", options.dump_logits,
                  "Write an HDF5 file of logits, f32 [sequences, positions, vocab]");
  verb.add_option("--dump-gradients", options.dump_gradients,
                  "Write an HDF5 file of the mean loss's gradient, f32, for every weight by its Hugging Face name");
  verb.add_option("--passes-without-gradient", options.without_gradient, "m; default: the checkpoint's")
      ->check(CLI::Range(0, kMostPasses));
  verb.add_option("--passes-with-gradient", options.with_gradient, "b; default: the checkpoint's")
      ->check(CLI::Range(1, kMostPasses));
}

}  // namespace

void add_eval(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto tasks = std::make_shared<EvalTasks>();
  CLI::App* verb = app.add_subcommand("eval", "Loss of a checkpoint on a token file, or its results on tasks");
  verb->add_option("--data", options->data, "Token file of kvloom tokenize");
  tasks->add_to(*verb);
  add_eval_prepare(*verb);
  verb->add_option("--part", options->part, "validation or training")
      ->check(CLI::IsMember({"validation", "training"}))
      ->capture_default_str();
  verb->add_flag("--any-tokenizer", options->any_tokenizer, "Take tokens of another tokenizer than the model's too");
  options->model.add_to(*verb);
  add_dump_options(*verb, *options);
  verb->footer(
      std::string(kEvalTasksFooter) +
      "Passes as many as the context has positions give the loss of --sequential, the model's own.\n"
      "Dumps are HDF5 files with the tokens and targets [sequences, positions] that were used (target -1: not "
      "counted)\n"
      "and attributes that say what was computed; the gradient is that of the mean loss over all sequences, after m\n"
      "passes that keep nothing and b that carry gradient. Losses and logits take m + b passes too, unless --passes\n"
      "says otherwise. Dumps, and losses beside them, are of the model as training holds it.\n"
      "Example: kvloom eval --checkpoint out --data tokens.h5\n"
      "Example: mpirun -n 2 kvloom eval --checkpoint out --data tokens.h5\n"
      "Example: kvloom eval --checkpoint hf-folder --data tokens.h5 --precision bf16 --weights int8 --kv-dtype int8\n"
      "Example: kvloom eval --checkpoint out/step-00000100 --data tokens.h5 --sequential --limit 8 --json\n"
      "Example: kvloom eval --checkpoint out --data tokens.h5 --limit 4 --dump-logits logits.h5 --dump-gradients "
      "grads.h5\n"
      "Example: kvloom eval --checkpoint out --data tokens.h5 --limit 1 --dump-gradients grads.h5 "
      "--passes-without-gradient 2 --passes-with-gradient 2\n"
      "Example: kvloom eval --checkpoint out --tasks hellaswag.jsonl lambada.jsonl --output results\n"
      "Example: mpirun -n 4 kvloom eval --checkpoint out --tasks piqa.jsonl --output results --resume auto --json\n"
      "Example: kvloom eval prepare hellaswag hellaswag_val.jsonl hellaswag.jsonl");
  verb->callback([verb, options, tasks] {
    if (!verb->get_subcommands().empty()) return;
    if (options->model.checkpoint.empty()) reject_input("--checkpoint is required (see kvloom eval --help)");
    if (options->data.empty() == tasks->files.empty()) reject_input("give one of --data and --tasks");
    options->model.check();
    if (tasks->files.empty()) return evaluate_on_ranks(*options);
    if (options->dumps() || options->without_gradient.has_value() || options->with_gradient.has_value()) {
      reject_input("--tasks: dumps and gradients are of --data; the passes of tasks are --passes");
    }
    if (verb->count("--part") > 0 || options->any_tokenizer) {
      reject_input("--tasks: --part and --any-tokenizer are of --data");
    }
    evaluate_task_files(*tasks, options->model);
  });
}

}  // namespace kvloom
