// One prompt, whose text is shown as it comes.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/kv_pages.h"
#include "core/quantity_text.h"
#include "infer/generation/prompt_request.h"
#include "infer/generation/prompt_source.h"
#include "launch/generate_options.h"
#include "launch/terminal.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

class Clock {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

struct Outcome {
  TextResult result;
  double prefill_seconds = 0;
  double decode_seconds = 0;
  std::int64_t new_tokens = 0;  // of all texts
  std::int64_t kv_bytes = 0;    // of the longest text
  std::int64_t kv_bytes_per_token = 0;

  const Usage& usage() const { return result.choices.front().usage; }
  double prefill_rate() const { return static_cast<double>(result.prompt_tokens) / prefill_seconds; }
  // The first token of a text comes out of prefill.
  double decode_rate() const {
    const auto texts = std::ssize(result.choices);
    return new_tokens > texts ? static_cast<double>(new_tokens - texts) / decode_seconds : 0.0;
  }
};

// No more room than the one prompt needs, unless more was asked for.
EngineOptions engine_options(const GenerateRun& run, std::int64_t prompt_tokens) {
  EngineOptions options = run.options.engine.options();
  const std::int64_t context = run.model.config().context;
  if (options.context == 0 && prompt_tokens < context) {
    options.context = prompt_tokens + std::min(context - prompt_tokens, run.request.max_new_tokens);
  }
  if (!run.options.engine.was_given("max-sequences")) options.max_sequences = run.request.n;
  return options;
}

std::int64_t bytes_per_token(const InferenceModel& model, KvFormat format) {
  const ModelConfig& config = model.config();
  std::int64_t bytes = 0;
  for (const ReachGroup& group : reach_groups(config.kv_map)) {
    bytes += kv_bytes_per_position(group, format, config.kv_heads, config.head_dim);
  }
  return bytes;
}

void show(const std::string& text) {
  if (text.empty()) return;
  fmt::print("{}", text);
  flush_output();
}

// Shows `before`, and then the text as it comes, unless nothing is to be shown yet.
Outcome generated(const GenerateRun& run, Engine& engine, TextRun& text, const std::optional<std::string>& before) {
  Outcome outcome{.kv_bytes_per_token = bytes_per_token(run.model, engine.options().kv_format)};
  engine.submit(text.take_request());
  if (before.has_value()) show(*before);
  Clock clock;
  while (text.under_way() > 0) {
    std::vector<Event> events = engine.step();
    const bool first = outcome.prefill_seconds == 0 && !events.empty() && (events.front().token || events.front().end);
    if (first) outcome.prefill_seconds = std::exchange(clock, Clock()).seconds();
    for (Event& event : events) {
      TextUpdate update = text.push(event, engine);
      if (before.has_value()) show(update.text);
      add_update(std::move(update), text, outcome.result);
    }
  }
  (outcome.prefill_seconds == 0 ? outcome.prefill_seconds : outcome.decode_seconds) = clock.seconds();
  std::int64_t longest = 0;
  for (const TextAnswer& answer : outcome.result.choices) {
    outcome.new_tokens += answer.new_tokens;
    longest = std::max(longest, answer.new_tokens);
  }
  // The last token leaves no K/V.
  const std::int64_t positions = outcome.result.prompt_tokens + std::max<std::int64_t>(0, longest - 1);
  outcome.kv_bytes = kv_bytes(run.model.config(), engine.options().kv_format, positions);
  return outcome;
}

std::int64_t context_of(const GenerateRun& run) {
  const std::int64_t given = run.options.engine.options().context;
  return given > 0 ? given : run.model.config().context;
}

bool is_context_full(const GenerateRun& run, const TextAnswer& answer) {
  return answer.finish == FinishReason::kLength && answer.new_tokens < run.request.max_new_tokens;
}

Json json_of(const GenerateRun& run, const Outcome& outcome) {
  Json json = result_json(result_of(0, outcome.result));
  json.erase("index");
  for (std::size_t k = 0; k < outcome.result.choices.size(); ++k) {
    const TextAnswer& answer = outcome.result.choices[k];
    Json& fields = json.contains("choices") ? json["choices"][k] : json;
    fields["new_tokens"] = answer.new_tokens;
    fields["context_full"] = is_context_full(run, answer);
  }
  json["capped"] = outcome.usage().capped;
  json["prefill_tokens_per_second"] = outcome.prefill_rate();
  json["decode_tokens_per_second"] = outcome.decode_rate();
  json["kv_bytes"] = outcome.kv_bytes;
  json["kv_bytes_per_token"] = outcome.kv_bytes_per_token;
  return json;
}

void print_texts(const std::string& before, const std::vector<TextAnswer>& texts) {
  for (std::size_t i = 0; i < texts.size(); ++i) {
    show(fmt::format("== {} of {}\n{}{}\n", i + 1, texts.size(), before, texts[i].text));
  }
}

void print_figures(const GenerateRun& run, const Outcome& outcome) {
  const Usage& usage = outcome.usage();
  fmt::print(stderr, "prompt: {} tokens at {:.1f} tokens/s, {:.2f} passes a token; {} new at {:.1f} tokens/s; KV: {}\n",
             outcome.result.prompt_tokens, outcome.prefill_rate(), usage.passes_per_token, outcome.new_tokens,
             outcome.decode_rate(), format_bytes(static_cast<double>(outcome.kv_bytes)));
  if (usage.capped) fmt::print(stderr, "{}\n", capped_words(run.options, "some tokens of the prompt"));
  const bool full = std::ranges::any_of(outcome.result.choices,
                                        [&](const TextAnswer& answer) { return is_context_full(run, answer); });
  if (full) fmt::print(stderr, "the context of {} is full\n", context_of(run));
}

void print_outcome(const GenerateRun& run, const Outcome& outcome, const std::string& before) {
  const GenerateOptions& options = run.options;
  for (const TextAnswer& answer : outcome.result.choices) {
    if (answer.finish == FinishReason::kFailed) fail("{}", answer.message);
  }
  if (options.json) {
    fmt::print("{}\n", json_of(run, outcome).dump(2, ' ', false, Json::error_handler_t::replace));
    return;
  }
  run.request.n == 1 ? show("\n") : print_texts(before, outcome.result.choices);
  print_figures(run, outcome);
}

}  // namespace

void generate_one(const GenerateRun& run) {
  if (run.ranks.replicas() > 1) {
    reject_input("{} replicas for one prompt; right is with --tp times --pp as many as the ranks",
                 run.ranks.replicas());
  }
  const GenerateOptions& options = run.options;
  TextRequest request = run.request;
  std::string before;
  std::unique_ptr<TextRun> text;
  if (run.ranks.leads()) {
    const std::string given = options.prompt_file.empty() ? options.prompts.front() : read_prompt(options.prompt_file);
    request.prompt = spoken_prompt(options, given);
    if (!options.json) request.ill_formed = IllFormed::kKeep;
    // A prompt of a file, or one said to a chat model, is not repeated.
    if (options.prompt_file.empty() && options.chat_template.empty()) before = given;
    text = std::make_unique<TextRun>(run.text, request);
  }
  const std::int64_t prompt_tokens = run.ranks.from_leader(text ? text->prompt_tokens() : 0);
  run_engine(run.model, engine_options(run, prompt_tokens), run.part.ranks(), [&](Engine& engine) {
    const bool streams = !options.json && request.n == 1;
    print_outcome(run, generated(run, engine, *text, streams ? std::optional(before) : std::nullopt), before);
  });
}

}  // namespace kvloom
