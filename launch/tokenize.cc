#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "launch/at_least.h"
#include "launch/terminal.h"
#include "launch/tokenize_pipeline.h"
#include "launch/verbs.h"

namespace kvloom {
namespace {

void run(TokenizeRequest request, bool json) {
  ProgressLine progress;
  request.progress = [&progress](const std::string& line) { progress.update(line); };
  const TokenizeSummary summary = tokenize(request);
  progress.end();
  const std::uint64_t tokens = summary.training_tokens + summary.validation_tokens;
  const double bytes_per_token = static_cast<double>(summary.bytes) / static_cast<double>(tokens);
  if (json) {
    fmt::print("{}\n", nlohmann::ordered_json{{"output", request.output.string()},
                                              {"files", summary.files},
                                              {"repeated_files", summary.repeated_files},
                                              {"bytes", summary.bytes},
                                              {"training_tokens", summary.training_tokens},
                                              {"validation_tokens", summary.validation_tokens},
                                              {"vocab", summary.vocab},
                                              {"bytes_per_token", bytes_per_token},
                                              {"seconds", summary.seconds}}
                           .dump(2));
    return;
  }
  fmt::print("{} files, {}: {} training and {} validation tokens of a vocabulary of {}, {:.2f} bytes each, in {}\n",
             summary.files, format_bytes(static_cast<double>(summary.bytes)), summary.training_tokens,
             summary.validation_tokens, summary.vocab, bytes_per_token, format_seconds(summary.seconds));
  if (summary.repeated_files > 0) {
    fmt::print("{} files were reached more than once and are taken once\n", summary.repeated_files);
  }
  fmt::print("wrote {}\n", request.output.string());
}

}  // namespace

void add_tokenize(CLI::App& app) {
  struct Options {
    TokenizeRequest request;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  TokenizeRequest& request = options->request;
  CLI::App* verb = app.add_subcommand("tokenize", "Turn text files and folders into a token file");
  verb->add_option("--input", request.inputs, "Files, and folders with all that is below")->required();
  verb->add_option("--glob", request.globs, "Only files of folders with such names, as '*.h'");
  verb->add_option("--tokenizer", request.tokenizer,
                   "bytes, sentencepiece:FILE, hf:FOLDER (its tokenizer.json, else tokenizer.model) or hf:FILE, or "
                   "train-sentencepiece:VOCAB")
      ->capture_default_str();
  verb->add_option("--output", request.output, "Token file to write (.h5)")->required();
  verb->add_option("--save-model", request.save_model, "Also write the trained SentencePiece model here");
  verb->add_option("--valid-fraction", request.valid_fraction,
                   "Share of the text held out for validation: whole files while they fit, else the tail of one")
      ->capture_default_str();
  verb->add_option("--seed", request.seed, "Chooses the files held out")->check(at_least(0))->capture_default_str();
  verb->add_option("--threads", request.threads, "Encoding threads, at most 1024; 0: all cores")->capture_default_str();
  verb->add_flag("--json", options->json, "Print the summary as JSON");
  verb->footer(
      "A file is a document, however often it is reached; a separator ends it.\n"
      "A single file keeps its last part for validation.\n"
      "Of a Hugging Face tokenizer, eos_token in tokenizer_config.json is the separator; BOS, if it has one, goes "
      "before.\n"
      "Example: kvloom tokenize --input book.txt --tokenizer bytes --valid-fraction 0.05 --output tokens.h5\n"
      "Example: kvloom tokenize --input src --glob '*.h' '*.cc' --tokenizer train-sentencepiece:4096 --output "
      "tokens.h5\n"
      "Example: kvloom tokenize --input corpus --glob '*.txt' --tokenizer hf:Llama-3.2-1B --output tokens.h5");
  verb->callback([options] { run(options->request, options->json); });
}

}  // namespace kvloom
