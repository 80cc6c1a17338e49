// Many prompts, and a line of JSON for each.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/quantity_text.h"
#include "core/same_file.h"
#include "infer/generation/dealt_lines.h"
#include "infer/generation/keyed_output.h"
#include "infer/generation/model_identity.h"
#include "infer/generation/offline_generation.h"
#include "infer/generation/prompt_request.h"
#include "infer/generation/prompt_source.h"
#include "launch/generate_options.h"
#include "launch/terminal.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

PromptInputs inputs_of(const GenerateRun& run) {
  const GenerateOptions& options = run.options;
  return {.prompts = options.prompts,
          .prompt_file = options.prompt_file,
          .lines_file = options.prompts_file,
          .request = run.request,
          .vocab = run.model.config().vocab,
          .speak = [&options](const std::string& text) { return spoken_prompt(options, text); }};
}

// What the texts depend on beside their prompts.
Json identity_of(const GenerateRun& run) {
  const GenerateOptions& options = run.options;
  Json identity = identity_of_texts(run.request, run.model, options.engine.options());
  identity["model"] = model_identity(options.checkpoint);
  identity["chat"] = {options.chat_template, options.system, options.prompts_file.empty()};
  return identity;
}

class Progress {
 public:
  Progress(std::optional<std::int64_t> total, std::int64_t first) : total_(total), first_(first) {}

  void update(const OfflineCounts& counts) {
    const double seconds = this->seconds();
    std::string text = fmt::format("{}{} prompts; {} tokens at {:.1f} tokens/s", first_ + counts.lines,
                                   total_ ? fmt::format(" of {}", *total_) : "",
                                   format_count(static_cast<double>(counts.new_tokens)), rate(counts, seconds));
    if (total_ && counts.lines > 0) {
      const auto left = static_cast<double>(*total_ - first_ - counts.lines);
      text += fmt::format("; {} left", format_seconds(seconds / static_cast<double>(counts.lines) * left));
    }
    line_.update(text);
  }
  // Something else is to be said.
  void interrupt() { line_.end(); }

  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
  static double rate(const OfflineCounts& counts, double seconds) {
    return seconds > 0 ? static_cast<double>(counts.new_tokens) / seconds : 0.0;
  }

 private:
  std::optional<std::int64_t> total_;
  std::int64_t first_;  // lines that were there already
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  ProgressLine line_;
};

// One replica's part of the prompts; the first replica writes the answers of all.
class ManyPrompts {
 public:
  explicit ManyPrompts(const GenerateRun& run)
      : run_(run), source_(inputs_of(run)), dealt_(run.ranks.leaders()), prints_(run.ranks.prints()) {}

  void generate(Engine& engine) {
    const GenerateOptions& options = run_.options;
    if (!options.output.empty() && prints_) open_output();
    std::vector<std::int64_t> first = {first_};
    run_.ranks.leaders().broadcast(std::span(first), 0);
    for (; !prints_ && first_ < first[0]; ++first_) source_.next();
    Progress progress(source_.total(), first_);
    const std::int64_t sequences = engine.options().max_sequences;
    const OfflineOptions offline{.lines_ahead = 4 * sequences,
                                 .texts_ahead = 2 * sequences,
                                 .bad_lines = options.strict ? BadLines::kStop : BadLines::kReport};
    const auto write = [&](std::int64_t line, const std::string& answer) {
      if (!output_ || answer.front() == kRefused) progress.interrupt();
      this->write(first_ + line, answer);
    };
    const OfflineCalls calls{
        .next = [&] { return next(); },
        .write =
            [&](std::int64_t n, const TextResult& result) {
              dealt_.give(answer_of(first_ + dealt_.own(n), result));
              // At once: what stops the run at a later line leaves those before it written.
              dealt_.write_what_came(write);
            },
        .write_known = [&](const std::string& known) { dealt_.give(kKnown + known); },
        .ended_early = [&](std::int64_t n, const TextResult& result) { keep_waiting(dealt_.own(n), result); },
        .progress =
            [&](const OfflineCounts& counts) {
              dealt_.write_what_came(write);
              if (prints_) progress.update(counts);
            }};
    const OfflineCounts counts = of_all(generate_offline(engine, run_.text, offline, calls));
    dealt_.finish(write);
    if (output_) output_->finish();
    progress.interrupt();
    if (prints_) report(counts, progress.seconds());
  }

 private:
  // How an answer begins on its way: a line of JSON follows, or why there is none.
  static constexpr char kAnswered = '+';
  static constexpr char kRefused = '-';
  static constexpr char kKnown = '=';

  void open_output() {
    const GenerateOptions& options = run_.options;
    if (is_same_file(options.prompts_file, options.output)) {
      reject_input("--output: '{}' has the prompts; name another file", options.output);
    }
    const AnswerStart start = options.resume == "auto" ? AnswerStart::kResume : AnswerStart::kFresh;
    output_ = std::make_unique<KeyedOutput>(options.output, start, identity_of(run_).dump());
    first_ = output_->skip_known([&] { return source_.next(); });
  }

  std::optional<OfflinePrompt> next() {
    while (const std::optional<InputLine> line = source_.next()) {
      const std::int64_t index = read_++;
      if (output_) output_->expect(*line);
      if (!dealt_.is_own(index)) continue;
      OfflinePrompt prompt = source_.prompt_of(*line);
      if (output_) prompt.known = output_->waiting(first_ + index);
      return prompt;
    }
    return std::nullopt;
  }

  // The first replica's own lines, while one of them is not done: what waits for another replica's lines is in memory
  // alone.
  void keep_waiting(std::int64_t line, const TextResult& result) {
    if (!output_) return;
    output_->keep_waiting(static_cast<std::size_t>(line - written_), result_json(result_of(first_ + line, result)));
  }

  static std::string answer_of(std::int64_t line, const TextResult& result) {
    if (!result.message.empty()) return kRefused + result.message;
    return kAnswered + one_line_of(result_json(result_of(line, result)));
  }

  void write(std::int64_t line, const std::string& answer) {
    const std::string text = answer.substr(1);
    const bool is_refused = answer.front() == kRefused;
    ++written_;
    if (answer.front() == kKnown) return output_->add_waiting(text);
    if (is_refused) fmt::print(stderr, "{}\n", text);
    if (output_) return output_->add(is_refused ? error_json(line, text) : Json::parse(text));
    fmt::print("{}\n", is_refused ? one_line_of(error_json(line, text)) : text);
    flush_output();
  }

  // Summed over the replicas.
  OfflineCounts of_all(OfflineCounts counts) {
    std::vector<std::int64_t> numbers = {counts.lines,  counts.bad_lines,     counts.capped,
                                         counts.failed, counts.prompt_tokens, counts.new_tokens};
    run_.ranks.leaders().all_reduce(std::span(numbers));
    return {.lines = numbers[0],
            .bad_lines = numbers[1],
            .capped = numbers[2],
            .failed = numbers[3],
            .prompt_tokens = numbers[4],
            .new_tokens = numbers[5]};
  }

  void report(const OfflineCounts& counts, double seconds) const {
    const GenerateOptions& options = run_.options;
    if (options.json && output_) {
      fmt::print("{}\n", Json{{"prompts", first_ + counts.lines},
                              {"resumed", first_},
                              {"bad_lines", counts.bad_lines},
                              {"failed", counts.failed},
                              {"capped", counts.capped},
                              {"prompt_tokens", counts.prompt_tokens},
                              {"new_tokens", counts.new_tokens},
                              {"seconds", seconds},
                              {"tokens_per_second", Progress::rate(counts, seconds)}}
                             .dump(2));
    }
    fmt::print(stderr, "{} prompts{}, {} tokens, in {}; {} new at {:.1f} tokens/s\n", counts.lines,
               first_ > 0 ? fmt::format(" beside {} that were there", first_) : "", counts.prompt_tokens,
               format_seconds(seconds), counts.new_tokens, Progress::rate(counts, seconds));
    if (counts.bad_lines > 0)
      fmt::print(stderr, "{} line{} could not be used\n", counts.bad_lines, counts.bad_lines > 1 ? "s" : "");
    if (counts.failed > 0) fmt::print(stderr, "{} text{} failed\n", counts.failed, counts.failed > 1 ? "s" : "");
    if (counts.capped > 0) {
      fmt::print(stderr, "{}\n", capped_words(options, fmt::format("tokens of {} prompts", counts.capped)));
    }
  }

  const GenerateRun& run_;
  PromptSource source_;
  DealtLines dealt_;
  bool prints_;
  std::unique_ptr<KeyedOutput> output_;
  std::int64_t first_ = 0;    // lines that the output had
  std::int64_t read_ = 0;     // after these
  std::int64_t written_ = 0;  // after these
};

}  // namespace

void generate_many(const GenerateRun& run) {
  if (run.ranks.replicas() > 1 && run.options.prompts_file == "-") {
    reject_input("--prompts: standard input is one rank's; right is a file, or with --tp times --pp as many as ranks");
  }
  run_engine(run.model, run.options.engine.options(), run.part.ranks(),
             [&](Engine& engine) { ManyPrompts(run).generate(engine); });
}

}  // namespace kvloom
