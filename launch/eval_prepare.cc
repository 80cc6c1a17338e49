// kvloom eval prepare and kvloom eval needle: task files, from published data sets and from any text.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <string>

#include "core/convert/model_source.h"
#include "core/convert/plan_models.h"
#include "core/file.h"
#include "core/same_file.h"
#include "infer/evaluation/datasets.h"
#include "infer/evaluation/needle.h"
#include "infer/tokenize/tokenizer_choice.h"
#include "infer/tokenizer.h"
#include "launch/at_least.h"
#include "launch/eval_tasks.h"
#include "launch/terminal.h"

namespace kvloom {
namespace {

constexpr std::uint64_t kLargestHaystack = std::uint64_t{256} << 20;

struct PrepareRequest {
  std::string dataset;
  DatasetSource source;
  std::string target;
};

struct NeedleRequest {
  std::string text;
  std::string target;
  std::string checkpoint;
  std::string tokenizer;
  std::string form = "choice";
  NeedleOptions options{.lengths = {}, .depths = {0, 0.25, 0.5, 0.75, 1}};
};

void write_task(const std::string& target, const std::string& text) {
  write_file_atomically(target, text);
  fmt::print("wrote {}: {} items\n", target, std::ranges::count(text, '\n') - 1);
}

void refuse_own_source(const std::string& target, const std::filesystem::path& source) {
  if (is_same_file(target, source)) reject_input("'{}' is what the task file is made from; name another", target);
}

void prepare(const PrepareRequest& request) {
  refuse_own_source(request.target, request.source.records);
  refuse_own_source(request.target, request.source.labels);
  write_task(request.target, make_dataset_task(request.dataset, request.source));
}

// Of an item that is longer than the model's context the beginning would be cut off, maybe with the needle: a length
// counts the last token too, which the model does not read.
void check_lengths(const NeedleRequest& request, std::int64_t context) {
  const std::int64_t longest = std::ranges::max(request.options.lengths);
  if (longest <= context + 1) return;
  reject_input(
      "--lengths: {} tokens; right for '{}', whose context is {}, is {} at most: it does not read the last one",
      longest, request.checkpoint, context, context + 1);
}

// A checkpoint's, or the one that a Hugging Face folder's model would have.
proto::Manifest manifest_of(const std::string& path) {
  const ModelSource source = open_model_source(path);
  return checkpoint_manifest(source, {.form = ModelForm::kCheckpoint, .model = source.model, .passes = source.passes});
}

std::unique_ptr<Tokenizer> tokenizer_of(const NeedleRequest& request) {
  if (request.checkpoint.empty() == request.tokenizer.empty()) {
    reject_input("give one of --checkpoint and --tokenizer: lengths are counted by it");
  }
  if (request.checkpoint.empty()) {
    return load_tokenizer(parse_tokenizer(request.tokenizer, TokenizerTraining::kNotOffered), print_warning);
  }
  const proto::Manifest manifest = manifest_of(request.checkpoint);
  check_lengths(request, static_cast<std::int64_t>(manifest.model().context()));
  return make_tokenizer(manifest.tokenizer_kind(), manifest.tokenizer(), request.checkpoint);
}

void make_needle(NeedleRequest request) {
  refuse_own_source(request.target, request.text);
  const std::unique_ptr<Tokenizer> tokenizer = tokenizer_of(request);
  request.options.form = request.form == "greedy" ? NeedleForm::kGreedy : NeedleForm::kChoice;
  write_task(request.target, make_needle_task(read_file(request.text, kLargestHaystack), *tokenizer, request.options));
}

void add_prepare(CLI::App& verb) {
  auto request = std::make_shared<PrepareRequest>();
  CLI::App* prepare_verb = verb.add_subcommand("prepare", "A task file of a published data set");
  prepare_verb->add_option("dataset", request->dataset, fmt::format("{}", fmt::join(dataset_names(), ", ")))
      ->required();
  prepare_verb->add_option("source", request->source.records, "Its records: .jsonl, .json, .csv or .tsv")->required();
  prepare_verb->add_option("target", request->target, "Task file to write (.jsonl)")->required();
  prepare_verb->add_option("--labels", request->source.labels,
                           "The answers, one a line, where they come in a file of their own");
  prepare_verb->footer(
      "Prompts and metrics are those of lm-evaluation-harness's tasks, without examples (zero-shot).\n"
      "Example: kvloom eval prepare hellaswag hellaswag_val.jsonl hellaswag.jsonl\n"
      "Example: kvloom eval prepare piqa valid.jsonl piqa.jsonl --labels valid-labels.lst\n"
      "Example: kvloom eval prepare arc_challenge ARC-Challenge-Test.csv arc_challenge.jsonl");
  prepare_verb->callback([request] { prepare(*request); });
}

void add_needle(CLI::App& verb) {
  auto request = std::make_shared<NeedleRequest>();
  CLI::App* needle = verb.add_subcommand("needle", "A task file of facts to be found again in a long text");
  needle->add_option("text", request->text, "The text that they are hidden in")->required();
  needle->add_option("target", request->target, "Task file to write (.jsonl)")->required();
  needle->add_option("--lengths", request->options.lengths, "Tokens of an item, at most; several lengths make rows")
      ->required()
      ->check(at_least(1));
  needle->add_option("--depths", request->options.depths, "Where in the text, 0 to 1; several depths make columns")
      ->capture_default_str();
  needle->add_option("--items", request->options.items, "Of each length and depth")
      ->check(at_least(1))
      ->capture_default_str();
  needle->add_option("--form", request->form, "choice: among four numbers; greedy: what greedy decoding gives")
      ->check(CLI::IsMember({"choice", "greedy"}))
      ->capture_default_str();
  needle->add_option("--seed", request->options.seed, "Equal seeds give equal items")
      ->check(at_least(0))
      ->capture_default_str();
  needle->add_option("--checkpoint", request->checkpoint,
                     "Whose tokenizer counts the lengths, and whose context holds them");
  needle->add_option("--tokenizer", request->tokenizer, "Or bytes, sentencepiece:FILE, hf:FILE-OR-FOLDER");
  needle->footer(
      "kvloom eval --tasks then prints accuracy by length and depth.\n"
      "Example: kvloom eval needle book.txt needle.jsonl --checkpoint out --lengths 256 512 --items 10\n"
      "Example: kvloom eval needle book.txt greedy.jsonl --tokenizer hf:folder --lengths 4096 --form greedy");
  needle->callback([request] { make_needle(*request); });
}

}  // namespace

void add_eval_prepare(CLI::App& verb) {
  add_prepare(verb);
  add_needle(verb);
}

}  // namespace kvloom
