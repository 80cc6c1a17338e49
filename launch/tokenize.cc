#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "core/quantity_text.h"
#include "infer/tokenize/pipeline.h"
#include "launch/at_least.h"
#include "launch/terminal.h"
#include "launch/verbs.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

Json as_json(const TokenizeRequest& request, const TokenizeSummary& summary, double bytes_per_token) {
  return {{"output", request.output.string()},
          {"files", summary.files},
          {"repeated_files", summary.repeated_files},
          {"hidden_files", summary.hidden_files},
          {"skipped_links", summary.skipped_links},
          {"documents", summary.documents},
          {"empty_documents", summary.empty_documents},
          {"bytes", summary.bytes},
          {"ill_formed_bytes", summary.ill_formed_bytes},
          {"forced_cuts", summary.forced_cuts},
          {"training_sample", summary.training_sample},
          {"training_tokens", summary.training_tokens},
          {"validation_tokens", summary.validation_tokens},
          {"vocab", summary.vocab},
          {"bytes_per_token", bytes_per_token},
          {"seconds", summary.seconds}};
}

// What was passed over or replaced, a line each.
void print_remarks(const TokenizeSummary& summary, const std::string& tokenizer) {
  const auto say = [](std::uint64_t count, std::string_view what) {
    if (count > 0) fmt::print("{} {}\n", count, what);
  };
  say(summary.repeated_files, "files were reached more than once and are taken once");
  say(summary.hidden_files, "hidden files and folders were left out (--hidden takes them)");
  say(summary.skipped_links, "links to folders, to nothing or to themselves were left out");
  say(summary.empty_documents, "lines without text were left out");
  say(summary.ill_formed_bytes,
      tokenizer == "bytes" ? "bytes are no UTF-8" : "bytes are no UTF-8 and were replaced by U+FFFD");
  say(summary.forced_cuts, "cuts stand inside of words: their texts have no better place for 64 MiB");
  if (summary.training_sample > 0) {
    fmt::print("the vocabulary was made from {} of the text\n",
               format_bytes(static_cast<double>(summary.training_sample)));
  }
}

void run(TokenizeRequest request, bool json) {
  ProgressLine progress;
  request.progress = [&progress](const std::string& line) { progress.update(line); };
  request.warn = print_warning;
  const TokenizeSummary summary = tokenize(request);
  progress.end();
  const std::uint64_t tokens = summary.training_tokens + summary.validation_tokens;
  const double bytes_per_token = static_cast<double>(summary.bytes) / static_cast<double>(tokens);
  if (json) {
    fmt::print("{}\n", as_json(request, summary, bytes_per_token).dump(2));
    return;
  }
  fmt::print(
      "{} files, {} documents, {}: {} training and {} validation tokens of a vocabulary of {}, {:.2f} bytes each, in "
      "{}\n",
      summary.files, summary.documents, format_bytes(static_cast<double>(summary.bytes)), summary.training_tokens,
      summary.validation_tokens, summary.vocab, bytes_per_token, format_seconds(summary.seconds));
  print_remarks(summary, request.tokenizer);
  fmt::print("wrote {}\n", request.output.string());
}

}  // namespace

void add_tokenize(CLI::App& app) {
  struct Options {
    TokenizeRequest request;
    std::string format = "auto";
    bool hidden = false;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  TokenizeRequest& request = options->request;
  CLI::App* verb = app.add_subcommand("tokenize", "Turn text files and folders into a token file");
  verb->add_option("--input", request.inputs, "Files, folders with all that is below, or -: standard input")
      ->required();
  verb->add_option("--glob", request.globs, "Only files of folders with such names, as '*.h'");
  verb->add_flag("--hidden", options->hidden, "Also files and folders of folders whose names begin with a dot");
  verb->add_option("--format", options->format,
                   "text: a file is a document; jsonl: each line of JSON is one; auto: jsonl for .jsonl and .ndjson")
      ->check(CLI::IsMember({"auto", "text", "jsonl"}))
      ->capture_default_str();
  verb->add_option("--text-key", request.text_key, "Where JSON lines have their text")->capture_default_str();
  verb->add_option("--tokenizer", request.tokenizer,
                   "bytes, sentencepiece:FILE, hf:FOLDER (its tokenizer.json, else tokenizer.model) or hf:FILE, or "
                   "train-sentencepiece:VOCAB")
      ->capture_default_str();
  verb->add_option("--output", request.output, "Token file to write (.h5)")->required();
  verb->add_option("--save-model", request.save_model, "Also write the trained SentencePiece model here");
  verb->add_option(
          "--valid-fraction", request.valid_fraction,
          "Share of the text held out for validation: whole files while they fit, else the tail of one; lines of JSON")
      ->capture_default_str();
  verb->add_option("--seed", request.seed, "Chooses the files held out")->check(at_least(0))->capture_default_str();
  verb->add_option("--threads", request.threads, "Encoding threads, at most 1024; 0: all cores")->capture_default_str();
  verb->add_flag("--json", options->json, "Print the summary as JSON");
  verb->footer(
      "A file is a document, however often it is reached; a separator ends it. Files may be compressed with gzip, "
      "zstd,\n"
      "xz or bzip2, and UTF-16 with a byte order mark.\n"
      "A single file keeps its last part for validation.\n"
      "Of a Hugging Face tokenizer, eos_token in tokenizer_config.json is the separator; BOS, if it has one, goes "
      "before.\n"
      "Example: kvloom tokenize --input book.txt --tokenizer bytes --valid-fraction 0.05 --output tokens.h5\n"
      "Example: kvloom tokenize --input src --glob '*.h' '*.cc' --tokenizer train-sentencepiece:4096 --output "
      "tokens.h5\n"
      "Example: zstdcat corpus.jsonl.zst | kvloom tokenize --input - --format jsonl --text-key content --output "
      "tokens.h5\n"
      "Example: kvloom tokenize --input corpus --glob '*.txt' --tokenizer hf:Llama-3.2-1B --output tokens.h5");
  verb->callback([options] {
    options->request.hidden = options->hidden ? HiddenFiles::kTake : HiddenFiles::kSkip;
    options->request.form = options->format == "text"    ? FormRule::kPlain
                            : options->format == "jsonl" ? FormRule::kJsonLines
                                                         : FormRule::kByName;
    run(options->request, options->json);
  });
}

}  // namespace kvloom
