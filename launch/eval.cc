#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/device_choice.h"
#include "core/version.h"
#include "data/dataset.h"
#include "infer/tokenizer.h"
#include "launch/eval_tasks.h"
#include "launch/memory_advice.h"
#include "launch/passes_option.h"
#include "launch/rank_device.h"
#include "launch/ranks.h"
#include "launch/same_file.h"
#include "launch/terminal.h"
#include "launch/verbs.h"
#include "train/evaluation_dump.h"
#include "train/loaded_model.h"
#include "train/training_checkpoint.h"

namespace kvloom {
namespace {

struct Options {
  std::string checkpoint;
  std::string data;
  std::string part = "validation";
  std::string precision = "f32";
  RankDeviceOptions device;
  std::string dump_logits;
  std::string dump_gradients;
  std::optional<int> passes;
  std::optional<int> without_gradient;
  std::optional<int> with_gradient;
  std::optional<std::int64_t> limit;
  bool any_tokenizer = false;
  bool sequential = false;
  bool json = false;

  bool dumps() const { return !dump_logits.empty() || !dump_gradients.empty(); }
};

struct Totals {
  double nats = 0;
  std::int64_t tokens = 0;
  double bytes = 0;  // of text that the tokens stand for
  std::int64_t sequences = 0;

  double mean_loss() const { return nats / static_cast<double>(tokens); }
};

// m and b.
Passes gradient_passes(const Options& options, const proto::Manifest& manifest) {
  const Passes trained = passes_of(manifest.passes());
  return {.without_gradient = options.without_gradient.value_or(trained.without_gradient),
          .with_gradient = options.with_gradient.value_or(trained.with_gradient)};
}

void check_limit(const Options& options) {
  if (options.limit.value_or(1) < 1) reject_input("--limit: {} sequences; right is 1 or more", *options.limit);
}

void check_dumps(const Options& options) {
  if (options.sequential && !options.dump_gradients.empty()) {
    reject_input("--dump-gradients: gradients go through passes; take --sequential away");
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

// Bytes of text by token: those of a token itself, or where the file's tokenizer cannot be read the part's mean.
std::vector<double> bytes_by_token(const TokenFile& file, Part part) {
  std::vector<double> bytes(static_cast<std::size_t>(file.vocab()),
                            static_cast<double>(file.text_bytes(part)) / static_cast<double>(file.count(part)));
  try {
    const auto tokenizer = make_tokenizer(file.tokenizer_kind(), file.tokenizer_model(), "the token file");
    const std::int64_t known = std::min(file.vocab(), tokenizer->vocab());
    for (std::int64_t id = 0; id < known; ++id) {
      bytes[static_cast<std::size_t>(id)] =
          static_cast<double>(tokenizer->bytes_of(static_cast<std::int32_t>(id)).size());
    }
  } catch (const InputError&) {
    return bytes;
  }
  return bytes;
}

// What goes over the windows of a part, one after the other; ranks take turns.
class Evaluation {
 public:
  Evaluation(const Options& options, const LoadedModel& loaded, const TokenFile& file, Part part, Communicator& ranks)
      : options_(options),
        loaded_(loaded),
        ranks_(ranks),
        gradient_passes_(gradient_passes(options, loaded.manifest)),
        passes_(passes_for(options.passes, gradient_passes_)),
        windows_(file, part, loaded.model->config().context),
        bytes_by_token_(bytes_by_token(file, part)),
        count_(std::min(windows_.size(), options.limit.value_or(windows_.size()))),
        tokens_(static_cast<std::size_t>(loaded.model->config().context)),
        targets_(tokens_.size()),
        nats_(static_cast<std::size_t>(count_)) {
    open_dumps(file.identity());
  }

  // Of all ranks, on every rank.
  Totals run() {
    ProgressLine progress;
    for (std::int64_t i = ranks_.rank(); i < count_; i += ranks_.size()) {
      measure(fill(i));
      if (ranks_.rank() != 0) continue;
      progress.update(fmt::format("{}/{} sequences, loss {:.4f}", std::min(i + ranks_.size(), count_), count_,
                                  measured_.mean_loss()));
    }
    progress.end();
    const Totals totals = total();
    if (logits_) logits_->finish(totals.mean_loss());
    if (gradients_) gradients_->finish();
    return totals;
  }

  int passes() const {
    const ModelConfig& config = loaded_.model->config();
    return passes_that_run(config.kv_map, passes_, config.context);
  }

 private:
  void open_dumps(const std::string& identity) {
    if (!options_.dumps()) return;
    const EvaluationOrigin origin{.created_by = program_and_version(),
                                  .step = loaded_.manifest.training().step(),
                                  .part = options_.part,
                                  .data = identity,
                                  .sequences = count_,
                                  .counted_targets = count_targets(),
                                  .form = options_.sequential ? EvaluationForm::kSequential : EvaluationForm::kParallel,
                                  .passes = passes(),
                                  .gradient_passes = gradient_passes_};
    if (!options_.dump_logits.empty()) logits_.emplace(options_.dump_logits, *loaded_.model, origin);
    if (!options_.dump_gradients.empty()) gradients_.emplace(options_.dump_gradients, *loaded_.model, origin);
  }

  EvaluationSequence fill(std::int64_t index) {
    windows_.fill(index, tokens_, targets_);
    return {.index = index, .tokens = tokens_, .targets = targets_};
  }

  std::int64_t count_targets() {
    std::int64_t counted = 0;
    for (std::int64_t i = 0; i < count_; ++i) counted += targets_in(fill(i));
    return counted;
  }

  static std::int64_t targets_in(const EvaluationSequence& sequence) {
    return std::ranges::count_if(sequence.targets, [](std::int32_t target) { return target != kIgnoredTarget; });
  }

  void measure(const EvaluationSequence& sequence) {
    const Model& model = *loaded_.model;
    LogitsSink sink;
    if (logits_) {
      logits_->add_tokens(sequence);
      sink = logits_->sink_of(sequence);
    }
    const TokenBatch batch = make_token_batch(model, sequence.tokens, sequence.targets, 1);
    const Tensor losses =
        options_.sequential ? sequential_losses(model, batch, sink) : parallel_losses(model, passes_, batch, sink);
    double& nats = nats_[static_cast<std::size_t>(sequence.index)];
    for (const float loss : losses.values<float>()) nats += static_cast<double>(loss);
    measured_.nats += nats;
    measured_.tokens += targets_in(sequence);
    for (const std::int32_t target : sequence.targets) {
      if (target != kIgnoredTarget) measured_.bytes += bytes_by_token_[static_cast<std::size_t>(target)];
    }
    if (gradients_) gradients_->add(sequence);
  }

  // Sequence by sequence, so that the sum does not depend on who measured which.
  Totals total() {
    Totals totals{.tokens = measured_.tokens, .bytes = measured_.bytes, .sequences = count_};
    ranks_.all_reduce(std::span(nats_));
    ranks_.all_reduce(std::span(&totals.tokens, 1));
    ranks_.all_reduce(std::span(&totals.bytes, 1));
    totals.nats = std::accumulate(nats_.begin(), nats_.end(), 0.0);
    if (!std::isfinite(totals.nats)) {
      fail("the loss is {}: the checkpoint's weights give no probabilities", totals.mean_loss());
    }
    return totals;
  }

  const Options& options_;
  const LoadedModel& loaded_;
  Communicator& ranks_;
  Passes gradient_passes_;
  Passes passes_;
  EvaluationWindows windows_;
  std::vector<double> bytes_by_token_;
  std::int64_t count_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> targets_;
  std::vector<double> nats_;  // [sequences], 0 of those that are other ranks'
  Totals measured_;           // of this rank, so far
  std::optional<LogitsDump> logits_;
  std::optional<GradientDump> gradients_;
};

void print_totals(const Options& options, const Totals& totals, const LoadedModel& loaded, int passes) {
  const double loss = totals.mean_loss();
  const double bits_per_byte = totals.nats / std::log(2.0) / totals.bytes;
  if (options.json) {
    const nlohmann::json used = options.sequential ? nlohmann::json() : nlohmann::json(passes);
    fmt::print("{}\n", nlohmann::ordered_json{{"loss", loss},
                                              {"perplexity", std::exp(loss)},
                                              {"bits_per_byte", bits_per_byte},
                                              {"tokens", totals.tokens},
                                              {"sequences", totals.sequences},
                                              {"form", options.sequential ? "sequential" : "parallel"},
                                              {"passes", used},
                                              {"step", loaded.manifest.training().step()}}
                           .dump(2));
    return;
  }
  fmt::print("loss {:.4f} nats/token, perplexity {:.3f}, {:.4f} bits/byte\n", loss, std::exp(loss), bits_per_byte);
  fmt::print(
      "{} tokens in {} sequences of up to {}, {}\n", totals.tokens, totals.sequences, loaded.model->config().context,
      options.sequential ? std::string("token by token") : fmt::format("{} pass{}", passes, passes == 1 ? "" : "es"));
}

void evaluate(const Options& options, World& world) {
  check_limit(options);
  check_dumps(options);
  Communicator& ranks = world.communicator();
  const std::unique_ptr<Allocator> allocator = make_allocator(options.device.of(world), options.device.setting(world));
  const LoadedModel loaded =
      load_model(options.checkpoint, options.precision == "bf16" ? DType::kBF16 : DType::kF32, *allocator);
  const TokenFile file(options.data);
  if (file.used_vocab() > loaded.model->config().vocab) {
    reject_input("--data: '{}' holds token {} of a vocabulary of {}; the model has {}", options.data,
                 file.used_vocab() - 1, file.vocab(), loaded.model->config().vocab);
  }
  if (!options.any_tokenizer) {
    check_tokenizer(tokenizer_of(loaded.manifest), options.checkpoint, file, options.data, "take --any-tokenizer");
  }
  const Part part = options.part == "training" ? Part::kTraining : Part::kValidation;
  if (file.count(part) < 2) {
    reject_input("--data: '{}' has {} {} tokens; make more with kvloom tokenize{}", options.data, file.count(part),
                 options.part, part == Part::kValidation ? " --valid-fraction, or take --part training" : "");
  }
  Evaluation evaluation(options, loaded, file, part, ranks);
  const Totals totals = evaluation.run();
  if (ranks.rank() != 0) return;
  print_totals(options, totals, loaded, evaluation.passes());
}

void evaluate_on_ranks(const Options& options) {
  run_in_world([&](World& world) {
    const int ranks = world.communicator().size();
    if (options.dumps() && ranks > 1) {
      reject_input(
          "--dump-logits, --dump-gradients: these are written by one rank, not {}; start kvloom without mpirun", ranks);
    }
    with_memory_advice(kEvalDataMemory, [&] { evaluate(options, world); });
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
  verb->add_option("--checkpoint", options->checkpoint, "Checkpoint, or an output directory: its best, else newest");
  verb->add_option("--data", options->data, "Token file of kvloom tokenize");
  tasks->add_to(*verb);
  add_eval_prepare(*verb);
  verb->add_option("--part", options->part, "validation or training")
      ->check(CLI::IsMember({"validation", "training"}))
      ->capture_default_str();
  auto* passes =
      verb->add_option("--passes", options->passes, "Passes of upward-read segments; default: as trained, m + b");
  verb->add_flag("--sequential", options->sequential, "Token by token, as decoding computes: no passes")
      ->excludes(passes);
  verb->add_flag("--any-tokenizer", options->any_tokenizer, "Take tokens of another tokenizer than the model's too");
  verb->add_option("--limit", options->limit, "At most this many sequences, or items of each task");
  verb->add_option("--precision", options->precision, "f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  options->device.add_to(*verb);
  add_dump_options(*verb, *options);
  verb->add_flag("--json", options->json, "Print JSON");
  verb->footer(
      std::string(kEvalTasksFooter) +
      "Passes as many as the context has positions give the loss of --sequential, the model's own.\n"
      "Dumps are HDF5 files with the tokens and targets [sequences, positions] that were used (target -1: not "
      "counted)\n"
      "and attributes that say what was computed; the gradient is that of the mean loss over all sequences, after m\n"
      "passes that keep nothing and b that carry gradient. Losses and logits take m + b passes too, unless --passes\n"
      "says otherwise.\n"
      "Example: kvloom eval --checkpoint out --data tokens.h5\n"
      "Example: mpirun -n 2 kvloom eval --checkpoint out --data tokens.h5\n"
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
    if (options->checkpoint.empty()) reject_input("--checkpoint is required (see kvloom eval --help)");
    if (options->data.empty() == tasks->files.empty()) reject_input("give one of --data and --tasks");
    if (tasks->files.empty()) return evaluate_on_ranks(*options);
    check_limit(*options);
    if (options->dumps() || options->without_gradient.has_value() || options->with_gradient.has_value()) {
      reject_input("--tasks: dumps and gradients are of --data; the passes of tasks are --passes");
    }
    if (verb->count("--part") > 0 || options->any_tokenizer) {
      reject_input("--tasks: --part and --any-tokenizer are of --data");
    }
    evaluate_task_files(*tasks, {options->checkpoint, options->precision, options->device, options->passes,
                                 options->sequential, options->limit, options->json});
  });
}

}  // namespace kvloom
