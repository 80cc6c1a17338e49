#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/decoder.h"
#include "core/device_choice.h"
#include "core/file.h"
#include "infer/generation_config.h"
#include "infer/sampler.h"
#include "infer/text/chat_template.h"
#include "infer/text/text_stream.h"
#include "infer/tokenizer.h"
#include "launch/gpu_options.h"
#include "launch/memory_advice.h"
#include "launch/passes_option.h"
#include "launch/ranks.h"
#include "launch/sampling_options.h"
#include "launch/terminal.h"
#include "launch/tokenizer_option.h"
#include "launch/verbs.h"
#include "train/loaded_model.h"

namespace kvloom {
namespace {

constexpr std::uint64_t kLargestPrompt = std::uint64_t{16} << 20;

struct Options {
  std::string checkpoint;
  std::optional<std::string> prompt;
  std::string prompt_file;
  std::string chat_template;  // empty: the prompt is a text to go on with
  std::string system;
  std::int64_t max_new_tokens = 128;
  SamplingOptions sampling;
  bool ignore_eos = false;
  std::vector<std::string> stops;
  std::string precision = "f32";
  std::string device = "cpu";
  GpuOptions gpu;
  std::string cuda_graphs = "on";
  std::optional<int> passes;
  float tolerance = 1e-3f;
  bool json = false;
};

struct Result {
  std::string text;  // after the prompt
  std::int64_t prompt_tokens = 0;
  std::int64_t new_tokens = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;
  int passes = 0;
  std::int64_t kv_bytes = 0;
  const char* finish_reason = "length";  // or "stop": the text ended, or a stop string came
  bool context_full = false;             // "length" because of the model's context, not of what was asked for

  double prefill_rate() const { return static_cast<double>(prompt_tokens) / prefill_seconds; }
  // The first token comes out of prefill.
  double decode_rate() const { return new_tokens > 1 ? static_cast<double>(new_tokens - 1) / decode_seconds : 0.0; }
};

class Clock {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Tensor token_tensor(Allocator& allocator, std::span<const std::int32_t> tokens) {
  return Tensor::of(allocator, {static_cast<std::int64_t>(tokens.size())}, tokens);
}

std::string prompt_of(const Options& options) {
  if (options.prompt.has_value() == !options.prompt_file.empty()) {
    reject_input("give one of --prompt and --prompt-file");
  }
  return options.prompt.has_value() ? *options.prompt : read_file(options.prompt_file, kLargestPrompt);
}

struct Prompt {
  std::vector<std::int32_t> tokens;
  Place answer = Place::kMiddle;   // of what is generated: it goes on with a text, or starts one
  std::vector<std::int32_t> ends;  // ids that end it
};

// The prompt is what a user says to a chat model.
Prompt chat_prompt(const Options& options, const Tokenizer& tokenizer) {
  const ChatTemplate chat = chat_template_of(tokenizer, options.chat_template, options.checkpoint);
  Conversation conversation;
  if (!options.system.empty()) conversation.messages.push_back({.role = "system", .content = options.system});
  conversation.messages.push_back({.role = "user", .content = prompt_of(options)});
  return {tokenizer.encode(chat.prompt(conversation)), Place::kStart, chat.end_ids(tokenizer)};
}

// An empty prompt starts a new document.
Prompt text_prompt(const Options& options, const Tokenizer& tokenizer, const std::optional<std::int32_t>& start) {
  if (!options.system.empty()) reject_input("--system: only a chat model has one; right is with --chat-template");
  const std::string text = prompt_of(options);
  Prompt prompt{.tokens = tokenizer.start_ids(), .answer = text.empty() ? Place::kStart : Place::kMiddle};
  tokenizer.encode(text, prompt.tokens);
  if (prompt.tokens.empty()) prompt.tokens.push_back(start.value_or(tokenizer.separator()));
  return prompt;
}

Prompt make_prompt(const Options& options, const Tokenizer& tokenizer, const LoadedModel& loaded) {
  const std::int64_t context = loaded.model->config().context;
  const TextEnds texts = text_ends_of(loaded.manifest.huggingface(), loaded.model->config().vocab, options.checkpoint);
  Prompt prompt =
      options.chat_template.empty() ? text_prompt(options, tokenizer, texts.start) : chat_prompt(options, tokenizer);
  prompt.ends.push_back(tokenizer.separator());
  prompt.ends.insert(prompt.ends.end(), texts.ends.begin(), texts.ends.end());
  if (static_cast<std::int64_t>(prompt.tokens.size()) >= context) {
    reject_input("--prompt: {} tokens; the model's context is {}, of which one must be left", prompt.tokens.size(),
                 context);
  }
  return prompt;
}

// Ids that the tokenizer does not know pad the model's vocabulary: what they would say, nobody knows.
bool ends_text(std::int32_t id, const Prompt& prompt, const Tokenizer& tokenizer) {
  return id >= tokenizer.vocab() || std::ranges::find(prompt.ends, id) != prompt.ends.end();
}

void show(const Options& options, Result& result, const std::string& text) {
  result.text += text;
  if (options.json) return;
  fmt::print("{}", text);
  flush_output();
}

Result run(const Options& options, const LoadedModel& loaded, const Tokenizer& tokenizer) {
  const ModelConfig& config = loaded.model->config();
  const SamplingParameters sampling = sampling_for(options.sampling, loaded.manifest.huggingface(), options.checkpoint);
  const Prompt prompt = make_prompt(options, tokenizer, loaded);
  const auto given = static_cast<std::int64_t>(prompt.tokens.size());
  const std::int64_t limit = std::min(config.context - given, options.max_new_tokens);
  const Passes passes = passes_for(options.passes, passes_of(loaded.manifest.passes()));
  Result result{.prompt_tokens = given};
  TokenSampler sampler(loaded.model->allocator(), config.vocab, sampling, prompt.tokens);
  Decoder decoder(*loaded.model, 1, std::min(config.context, given + limit),
                  {.launch = options.cuda_graphs == "on" ? StepLaunch::kGraph : StepLaunch::kDirect,
                   .end = [&](const Tensor& from, Tensor& next) { sampler.choose(from, next); }});
  const bool repeats_prompt = options.prompt.has_value() && options.chat_template.empty();
  if (!options.json && repeats_prompt) fmt::print("{}", *options.prompt);

  const Clock prefill;
  Tensor logits = decoder.prefill(token_tensor(loaded.model->allocator(), prompt.tokens),
                                  {.passes = passes, .tolerance = options.tolerance});
  loaded.model->allocator().synchronize();
  result.prefill_seconds = prefill.seconds();
  result.passes = decoder.prefill_passes();

  TextStream stream(tokenizer, {.place = prompt.answer, .stops = options.stops, .ill_formed = IllFormed::kKeep});
  const Clock decode;
  Tensor tokens = decoder.tokens();
  sampler.choose(logits, tokens);
  while (result.new_tokens < limit) {
    const std::int32_t next = sampler.read(logits, tokens);
    if (!options.ignore_eos && ends_text(next, prompt, tokenizer)) {
      result.finish_reason = "stop";
      break;
    }
    ++result.new_tokens;
    show(options, result, stream.push(next).text);
    if (stream.stopped() || result.new_tokens == limit) break;
    logits = decoder.step(tokens);
  }
  result.decode_seconds = decode.seconds();
  show(options, result, stream.finish().text);
  if (stream.stopped()) result.finish_reason = "stop";
  result.context_full = !stream.stopped() && result.new_tokens == limit && limit < options.max_new_tokens;
  result.kv_bytes = decoder.length() * kv_bytes_per_token(config, loaded.model->dtype());
  return result;
}

// Beyond the model's vocabulary there is no embedding: the model would answer to something else than the prompt. Ids
// that the tokenizer does not know may pad the model's.
void check_vocabulary(const Options& options, const Tokenizer& tokenizer, const ModelConfig& config) {
  if (tokenizer.vocab() <= config.vocab) return;
  reject_input("--checkpoint: '{}' has a tokenizer of {} ids and a model of {}; right is a tokenizer of {} at most",
               options.checkpoint, tokenizer.vocab(), config.vocab, config.vocab);
}

void generate(const Options& options) {
  check_given(options.sampling);  // before a large model is read
  if (options.max_new_tokens < 1) reject_input("--max-new-tokens: {}; right is 1 or more", options.max_new_tokens);
  const std::unique_ptr<Allocator> allocator = make_allocator(parse_device(options.device), options.gpu.setting());
  const LoadedModel loaded =
      load_model(options.checkpoint, options.precision == "bf16" ? DType::kBF16 : DType::kF32, *allocator);
  const std::unique_ptr<Tokenizer> tokenizer =
      make_tokenizer(loaded.manifest.tokenizer_kind(), loaded.manifest.tokenizer(), options.checkpoint);
  warn_of_unheeded(*tokenizer, options.checkpoint);
  check_vocabulary(options, *tokenizer, loaded.model->config());
  const Result result = run(options, loaded, *tokenizer);
  if (options.json) {
    fmt::print("{}\n", nlohmann::ordered_json{{"text", result.text},
                                              {"prompt_tokens", result.prompt_tokens},
                                              {"new_tokens", result.new_tokens},
                                              {"finish_reason", result.finish_reason},
                                              {"context_full", result.context_full},
                                              {"prefill_passes", result.passes},
                                              {"prefill_tokens_per_second", result.prefill_rate()},
                                              {"decode_tokens_per_second", result.decode_rate()},
                                              {"kv_bytes", result.kv_bytes},
                                              {"kv_bytes_per_token",
                                               kv_bytes_per_token(loaded.model->config(), loaded.model->dtype())}}
                           .dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    return;
  }
  fmt::print("\n");
  flush_output();
  fmt::print(stderr, "prompt: {} tokens at {:.1f} tokens/s in {} passes; {} new at {:.1f} tokens/s; KV: {}\n",
             result.prompt_tokens, result.prefill_rate(), result.passes, result.new_tokens, result.decode_rate(),
             format_bytes(static_cast<double>(result.kv_bytes)));
  if (result.context_full) {
    fmt::print(stderr, "the model's context of {} is full\n", loaded.model->config().context);
  }
}

}  // namespace

void add_generate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("generate", "Let a checkpoint go on with a text");
  verb->add_option("--checkpoint", options->checkpoint, "Checkpoint, or an output directory: its best, else newest")
      ->required();
  verb->add_option("--prompt", options->prompt, "Text to go on with; '' starts a document");
  verb->add_option("--prompt-file", options->prompt_file, "The text, in a file");
  verb->add_option("--chat-template", options->chat_template,
                   "The prompt is said to a chat model: auto (the tokenizer's own), chatml, llama-3, llama-2, mistral, "
                   "or a file with a Jinja template");
  verb->add_option("--system", options->system, "What the system says before, to a chat model");
  verb->add_option("--max-new-tokens", options->max_new_tokens, "Stop after this many")->capture_default_str();
  options->sampling.add_to(*verb);
  verb->add_flag("--ignore-eos", options->ignore_eos, "Go on where the text ends");
  verb->add_option("--stop", options->stops, "Stop before this text; may be given again");
  verb->add_option("--passes", options->passes, "Prefill passes at most; default: as trained, m + b");
  verb->add_option("--tolerance", options->tolerance, "Prefill passes stop when K/V change less; 0: never")
      ->capture_default_str();
  verb->add_option("--precision", options->precision, "f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  verb->add_option("--device", options->device, "cpu, cuda or cuda:<index>: where to compute")->capture_default_str();
  options->gpu.add_to(*verb);
  add_cuda_graphs_option(*verb, options->cuda_graphs);
  verb->add_flag("--json", options->json, "Print JSON at the end instead of text as it comes");
  verb->footer(
      "The generation_config.json of a Hugging Face model goes along with it: each of its eos_token_id ends a text, "
      "as\n"
      "does what separates documents for the tokenizer, and its temperature, top_k, top_p, min_p and\n"
      "repetition_penalty count where no option is given. Where it names no temperature, that is 1, or with do_sample\n"
      "false 0: always the likeliest. Without the file kvloom samples at temperature 0.8 from all tokens.\n"
      "Example: kvloom generate --checkpoint out --prompt '#include <' --max-new-tokens 64 --temperature 0.7\n"
      "Example: kvloom generate --checkpoint out --prompt-file chapter.txt --temperature 0 --stop 'THE END' --json");
  verb->callback([options] {
    require_one_rank();
    with_memory_advice(kGenerateMemory, [&] { generate(*options); });
  });
}

}  // namespace kvloom
