#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/config.h"
#include "core/device_choice.h"
#include "launch/terminal.h"
#include "launch/verbs.h"
#include "train/trainer.h"
#include "train/training_checkpoint.h"

namespace kvloom {
namespace {

struct Options {
  std::string checkpoint;
  std::string data;
  std::string part = "validation";
  std::string precision = "f32";
  std::string device = "cpu";
  std::optional<int> passes;
  std::optional<std::int64_t> limit;
  bool any_tokenizer = false;
  bool sequential = false;
  bool json = false;
};

struct Totals {
  double nats = 0;
  std::int64_t tokens = 0;
  std::int64_t sequences = 0;
};

Passes passes_for(const Options& options, const proto::Manifest& manifest) {
  if (!options.passes.has_value()) return passes_of(manifest.passes());
  if (*options.passes < 1) reject_input("--passes: {}; right is 1 or more", *options.passes);
  return {.without_gradient = *options.passes - 1, .with_gradient = 1};
}

Totals measure(const Options& options, const LoadedModel& loaded, const Passes& passes,
               const EvaluationWindows& windows) {
  const std::int64_t context = loaded.model->config().context;
  const std::int64_t count = std::min(windows.size(), options.limit.value_or(windows.size()));
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(context));
  std::vector<std::int32_t> targets(tokens.size());
  Totals totals;
  ProgressLine progress;
  for (std::int64_t i = 0; i < count; ++i) {
    windows.fill(i, tokens, targets);
    const TokenBatch batch = make_token_batch(*loaded.model, tokens, targets, 1);
    const Tensor losses =
        options.sequential ? sequential_losses(*loaded.model, batch) : parallel_losses(*loaded.model, passes, batch);
    for (const float loss : losses.values<float>()) totals.nats += static_cast<double>(loss);
    totals.tokens += std::ranges::count_if(targets, [](std::int32_t t) { return t != kIgnoredTarget; });
    ++totals.sequences;
    if (is_terminal(Stream::kError)) {
      progress.show(
          fmt::format("{}/{} sequences, loss {:.4f}", i + 1, count, totals.nats / static_cast<double>(totals.tokens)));
    }
  }
  progress.end();
  return totals;
}

void evaluate(const Options& options) {
  const std::unique_ptr<Allocator> allocator = make_allocator(parse_device(options.device));
  const LoadedModel loaded =
      load_model(options.checkpoint, options.precision == "bf16" ? DType::kBF16 : DType::kF32, *allocator);
  const Passes passes = passes_for(options, loaded.manifest);
  const TokenFile file(options.data);
  if (file.vocab() > loaded.model->config().vocab) {
    reject_input("--data: '{}' holds tokens of a vocabulary of {}; the model has {}", options.data, file.vocab(),
                 loaded.model->config().vocab);
  }
  if (!options.any_tokenizer) {
    check_tokenizer(tokenizer_of(loaded.manifest), options.checkpoint, file, options.data, "take --any-tokenizer");
  }
  const Part part = options.part == "training" ? Part::kTraining : Part::kValidation;
  if (file.count(part) < 2) {
    reject_input("--data: '{}' has {} {} tokens; make more with kvloom tokenize{}", options.data, file.count(part),
                 options.part, part == Part::kValidation ? " --valid-fraction, or take --part training" : "");
  }
  const EvaluationWindows windows(file, part, loaded.model->config().context);
  const Totals totals = measure(options, loaded, passes, windows);
  const double loss = totals.nats / static_cast<double>(totals.tokens);
  const double bytes_per_token = static_cast<double>(file.text_bytes(part)) / static_cast<double>(file.count(part));
  const double bits_per_byte = loss / std::log(2.0) / bytes_per_token;
  if (options.json) {
    fmt::print("{}\n", nlohmann::ordered_json{{"loss", loss},
                                              {"perplexity", std::exp(loss)},
                                              {"bits_per_byte", bits_per_byte},
                                              {"tokens", totals.tokens},
                                              {"sequences", totals.sequences},
                                              {"form", options.sequential ? "sequential" : "parallel"},
                                              {"passes", passes.without_gradient + passes.with_gradient},
                                              {"step", loaded.manifest.training().step()}}
                           .dump(2));
    return;
  }
  fmt::print("loss {:.4f} nats/token, perplexity {:.3f}, {:.4f} bits/byte\n", loss, std::exp(loss), bits_per_byte);
  fmt::print("{} tokens in {} sequences of up to {}, {}\n", totals.tokens, totals.sequences,
             loaded.model->config().context,
             options.sequential ? std::string("token by token")
                                : fmt::format("{} passes", passes.without_gradient + passes.with_gradient));
}

}  // namespace

void add_eval(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("eval", "Loss, perplexity and bits per byte of a checkpoint on a token file");
  verb->add_option("--checkpoint", options->checkpoint, "Checkpoint, or an output directory: its best, else newest")
      ->required();
  verb->add_option("--data", options->data, "Token file of kvloom tokenize")->required();
  verb->add_option("--part", options->part, "validation or training")
      ->check(CLI::IsMember({"validation", "training"}))
      ->capture_default_str();
  verb->add_option("--passes", options->passes, "Passes of upward-read segments; default: as trained, m + b");
  verb->add_flag("--sequential", options->sequential, "Token by token, as decoding computes");
  verb->add_flag("--any-tokenizer", options->any_tokenizer, "Take tokens of another tokenizer than the model's too");
  verb->add_option("--limit", options->limit, "At most this many sequences")->check(CLI::PositiveNumber);
  verb->add_option("--precision", options->precision, "f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  verb->add_option("--device", options->device, "cpu, cuda or cuda:<index>: where to compute")->capture_default_str();
  verb->add_flag("--json", options->json, "Print JSON");
  verb->footer(
      "Passes as many as the context has positions give the loss of --sequential, the model's own.\n"
      "Example: kvloom eval --checkpoint out --data tokens.h5\n"
      "Example: kvloom eval --checkpoint out/step-00000100 --data tokens.h5 --sequential --limit 8 --json");
  verb->callback([options] { evaluate(*options); });
}

}  // namespace kvloom
