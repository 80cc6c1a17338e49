#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "core/allocator.h"
#include "infer/tokenize/tokenizer_choice.h"
#include "launch/at_least.h"
#include "launch/generate_options.h"
#include "launch/memory_advice.h"
#include "launch/ranks.h"
#include "launch/terminal.h"
#include "launch/verbs.h"

namespace kvloom {
namespace {

bool is_many(const GenerateOptions& options) {
  return options.prompts.size() > 1 || !options.prompts_file.empty() || !options.output.empty();
}

// What is wrong whatever the model, before a large one is read.
void check(const GenerateOptions& options) {
  check_given(options.sampling);
  require_cpu(options.device);
  options.engine.format();
  options.engine.options();
  const int sources = (options.prompts.empty() ? 0 : 1) + (options.prompt_file.empty() ? 0 : 1) +
                      (options.prompts_file.empty() ? 0 : 1);
  if (sources != 1) reject_input("give one of --prompt, --prompt-file and --prompts");
  if (options.max_new_tokens < 1 && !options.prompt_logprobs.has_value()) {
    reject_input("--max-new-tokens: {}; right is 1 or more, or 0 with --prompt-logprobs", options.max_new_tokens);
  }
  if (!options.system.empty() && options.chat_template.empty()) {
    reject_input("--system: only a chat model has one; right is with --chat-template");
  }
  if (!options.system.empty() && !options.prompts_file.empty()) {
    reject_input("--system: goes before --prompt; the messages of a line of --prompts have their own");
  }
  const bool has_fields = options.json || is_many(options);
  if (!has_fields && (options.logprobs.has_value() || options.prompt_logprobs.has_value())) {
    reject_input("--{}: are written as JSON; right is with --json or --output",
                 options.logprobs.has_value() ? "logprobs" : "prompt-logprobs");
  }
  if (options.resume == "auto" && options.output.empty()) {
    reject_input("--resume auto: goes on with what is in --output, which is not given");
  }
  if (options.strict && options.prompts_file.empty()) reject_input("--strict: is of lines; right is with --prompts");
}

TextRequest request_of(const GenerateOptions& options, const proto::Manifest& manifest) {
  return {.prompt = {},
          .max_new_tokens = options.max_new_tokens,
          .sampling = sampling_for(options.sampling, manifest.huggingface(), options.checkpoint),
          .n = options.n,
          .stops = options.stops,
          .ends = options.ignore_eos ? EndIds::kIgnore : EndIds::kHeed,
          .logprobs = options.logprobs,
          .prompt_logprobs = options.prompt_logprobs};
}

void generate(const GenerateOptions& options, World& world) {
  check(options);
  ServingRanks ranks(world, options.mesh);
  CachingCpuAllocator allocator(BlockSizes::kClasses);
  const auto [part, loaded] = ranks.load(options.checkpoint, options.engine.format(), allocator);
  const TextModel text(loaded.manifest, loaded.model->config(), options.checkpoint, options.chat_template);
  if (ranks.prints()) print_warning(warning_of_unheeded(text.tokenizer(), options.checkpoint));
  const GenerateRun run{options, *loaded.model, text, request_of(options, loaded.manifest), ranks, *part};
  if (is_many(options)) return generate_many(run);
  generate_one(run);
}

void add_prompts(CLI::App& verb, GenerateOptions& options) {
  verb.add_option("--checkpoint", options.checkpoint,
                  "Checkpoint, output directory (its best checkpoint, else the newest) or Hugging Face folder")
      ->required();
  verb.add_option("--prompt", options.prompts, "Text to go on with; '' starts a document; may be given again")
      ->allow_extra_args(false);
  verb.add_option("--prompt-file", options.prompt_file, "The text, in a file; -: on standard input");
  verb.add_option("--prompts", options.prompts_file, "Many prompts, a line of JSON each (below); -: on standard input");
  verb.add_option("--chat-template", options.chat_template,
                  "The prompt is said to a chat model: auto (the tokenizer's own), chatml, llama-3, llama-2, mistral, "
                  "or a file with a Jinja template; of --prompts, the messages are, by default by the tokenizer's own");
  verb.add_option("--system", options.system, "What the system says before, to a chat model");
}

void add_texts(CLI::App& verb, GenerateOptions& options) {
  verb.add_option("--max-new-tokens", options.max_new_tokens, "Stop after this many")->capture_default_str();
  verb.add_option("--n", options.n, "Texts for each prompt, each of a seed of its own")
      ->check(at_least(1))
      ->capture_default_str();
  options.sampling.add_to(verb);
  verb.add_flag("--ignore-eos", options.ignore_eos, "Go on where the text ends");
  verb.add_option("--stop", options.stops, "Stop before this text; may be given again");
  verb.add_option("--logprobs", options.logprobs,
                  "In JSON, the log-probability of each token, and of so many of the likeliest in its place")
      ->check(at_least(0));
  verb.add_option("--prompt-logprobs", options.prompt_logprobs, "The same of the prompt's tokens")->check(at_least(0));
}

void add_results(CLI::App& verb, GenerateOptions& options) {
  verb.add_option("--output", options.output, "Write a line of JSON for each prompt, in their order, to this file");
  verb.add_option("--resume", options.resume,
                  "auto: go on with what is in --output, which must be of the same prompts, model and options")
      ->check(CLI::IsMember({"auto", "no"}))
      ->capture_default_str();
  verb.add_flag("--strict", options.strict, "End at a line of --prompts that cannot be used, instead of reporting it");
  verb.add_flag("--json", options.json, "Print JSON at the end: one text with its figures, or with --output a summary");
  verb.add_option("--device", options.device, "cpu: where the engine runs so far")->capture_default_str();
}

constexpr const char* kFooter =
    "Many prompts: a line of --prompts has \"prompt\" (a text), \"tokens\" (ids) or \"messages\" (role and content), "
    "and\n"
    "any of max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,\n"
    "frequency_penalty, logit_bias, seed, n, stop, ignore_eos, logprobs and prompt_logprobs, which go before the\n"
    "options. A line comes out for each, with its index from 0, text, tokens, finish_reason (stop, length or error,\n"
    "with a message), prompt_tokens and passes_per_token; with n above 1 a list of choices. Lines that cannot be used\n"
    "are reported by number. What comes out of a prompt does not depend on the others.\n"
    "The generation_config.json of a Hugging Face model goes along with it: each of its eos_token_id ends a text, as\n"
    "does what separates documents for the tokenizer, and its temperature, top_k, top_p, min_p and\n"
    "repetition_penalty count where no option is given. As in transformers it samples only with do_sample true, at\n"
    "its temperature or 1; else the likeliest token is taken. Without the file kvloom samples at temperature 0.8\n"
    "from all tokens.\n"
    "Under mpirun --tp times --pp ranks hold one model; the prompts are dealt out among as many replicas as that "
    "leaves.\n"
    "Example: kvloom generate --checkpoint out --prompt '#include <' --max-new-tokens 64 --temperature 0.7\n"
    "Example: kvloom generate --checkpoint out --prompt-file chapter.txt --temperature 0 --stop 'THE END' --json\n"
    "Example: kvloom generate --checkpoint out --prompts questions.jsonl --output answers.jsonl --resume auto\n"
    "Example: mpirun -n 4 kvloom generate --checkpoint out --tp 2 --pp 2 --prompt 'Once upon'";

}  // namespace

TextPrompt spoken_prompt(const GenerateOptions& options, const std::string& text) {
  if (options.chat_template.empty()) return text;
  Conversation conversation;
  if (!options.system.empty()) conversation.messages.push_back({.role = "system", .content = options.system});
  conversation.messages.push_back({.role = "user", .content = text});
  return conversation;
}

std::string capped_words(const GenerateOptions& options, const std::string& what) {
  return fmt::format(
      "{} had not settled within --prefill-passes {}: their K/V may be further from exact than --tolerance", what,
      options.engine.options().prefill_passes);
}

void add_generate(CLI::App& app) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* verb = app.add_subcommand("generate", "Let a model go on with a text, or with many");
  add_prompts(*verb, *options);
  add_texts(*verb, *options);
  add_results(*verb, *options);
  options->engine.add_to(*verb);
  options->mesh.add_to(*verb);
  verb->footer(kFooter);
  verb->callback([options] {
    run_in_world([&](World& world) { with_memory_advice(kGenerateMemory, [&] { generate(*options, world); }); });
  });
}

}  // namespace kvloom
