#include <fmt/format.h>

#include <iostream>
#include <memory>

#include "infer/server/api_key.h"
#include "kernels/error.h"
#include "launch/at_least.h"
#include "launch/bench_options.h"
#include "launch/bench_serve.h"
#include "launch/bench_url.h"
#include "launch/engine_options.h"
#include "launch/memory_advice.h"
#include "launch/ranks.h"
#include "launch/serving_mesh_options.h"

namespace kvloom {
namespace {

struct ServeOptions : BenchOptions {
  std::string checkpoint;
  EngineOptionSet engine;
  ServingMeshOptions mesh;
  std::vector<std::string> batches = {"1", "8", "32"};
  std::int64_t prompt = 512;
  std::int64_t steps = 32;
  int repetitions = 3;
  bool whole = false;
  std::vector<std::int64_t> first_token_prompts;
  ArrivalLoad arrivals{.per_second = 0};
  std::string url;
  std::string served_model;
  std::string api_key;
  std::string api_key_file;

  ArrivalLoad load() const {
    ArrivalLoad load = arrivals;
    load.shape = {.prompt_tokens = prompt, .new_tokens = steps};
    return load;
  }
};

std::vector<std::int64_t> parse_batches(const std::vector<std::string>& texts) {
  std::vector<std::int64_t> batches;
  for (const std::string& text : texts) {
    std::int64_t batch = 0;
    const bool is_number =
        text == "max" || (CLI::detail::lexical_cast(text, batch) && batch >= 1 && batch <= kMostSequences);
    if (!is_number) reject_input("--batch: '{}'; right are numbers of sequences, and max", text);
    batches.push_back(batch);
  }
  return batches;
}

void measure_serve(const ServeOptions& options) {
  BenchServeRequest request{
      .checkpoint = options.checkpoint,
      .model = options.model(),
      .maps = maps_of(options, {fmt::format("pizza-bottom:{}", options.layers / 2), "sandwich-middle:3"}),
      .format = options.engine.format(),
      .engine = options.engine.options(),
      .batches = parse_batches(options.batches),
      .prompt = options.prompt,
      .steps = options.steps,
      .repetitions = options.repetitions,
      .whole = options.whole,
      .first_token_prompts = options.first_token_prompts,
      .arrivals = options.load(),
      .form = options.form()};
  if (!options.checkpoint.empty() && !options.maps.empty()) {
    reject_input("--maps: the checkpoint has a map of its own; right is one of --checkpoint and --maps");
  }
  run_in_world([&](World& world) {
    ServingRanks ranks(world, options.mesh);
    if (world.communicator().size() > 1) request.ranks = &ranks;
    with_memory_advice(kBenchDecodeMemory, [&] { bench_serve(request, std::cout); });
  });
}

void measure_url(const ServeOptions& options) {
  require_one_rank();
  if (!options.checkpoint.empty()) reject_input("give one of --checkpoint and --url");
  if (options.arrivals.per_second <= 0) reject_input("--url: a server is measured under arrivals; right is --rate N");
  bench_url({.server = parse_server_url(options.url),
             .model = options.served_model,
             .api_key = api_key_of(options.api_key, options.api_key_file),
             .vocab = options.vocab,
             .load = options.load()},
            options.form(), std::cout);
}

void add_load_options(CLI::App& verb, ServeOptions& options) {
  verb.add_option(
          "--batch", options.batches,
          "Sequences that are decoded together, each number measured by itself; max: as many as --kv-memory holds")
      ->capture_default_str();
  verb.add_option("--prompt-tokens", options.prompt, "Tokens of each prompt")
      ->check(CLI::Range(std::int64_t{1}, kMostPromptTokens))
      ->capture_default_str();
  verb.add_option("--steps", options.steps, "Timed steps, each of which gives every sequence a token")
      ->check(CLI::Range(1, kMostSteps))
      ->capture_default_str();
  verb.add_option("--repetitions", options.repetitions, "Of everything; the best counts")
      ->check(at_least(1))
      ->capture_default_str();
  verb.add_flag("--whole", options.whole, "Serve each batch once more from its arrival to the last token of --steps");
  verb.add_option("--first-token", options.first_token_prompts,
                  "Time to the first token of one prompt of each of these lengths");
  verb.add_option("--rate", options.arrivals.per_second, "Requests that arrive in a second, at random moments; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb.add_option("--requests", options.arrivals.requests, "With --rate: so many")
      ->check(at_least(1))
      ->capture_default_str();
  verb.add_option("--seed", options.arrivals.seed, "With --rate: of moments and prompts")->capture_default_str();
}

void add_url_options(CLI::App& verb, ServeOptions& options) {
  constexpr const char* kGroup = "A server";
  verb.add_option(
          "--url", options.url,
          "With --rate: no engine but the OpenAI-compatible server at http://HOST:PORT, by streamed completions")
      ->group(kGroup);
  verb.add_option("--model", options.served_model, "What it calls its model; default: the first of /v1/models")
      ->group(kGroup);
  verb.add_option("--api-key", options.api_key, "That it asks for; others see it in the list of processes")
      ->group(kGroup);
  verb.add_option("--api-key-file", options.api_key_file, "The same, in a file of one line")->group(kGroup);
}

}  // namespace

void add_bench_serve(CLI::App& bench) {
  CLI::App* verb =
      bench.add_subcommand("serve", "The inference engine beside what memory and products allow, map by map");
  auto options = std::make_shared<ServeOptions>();
  verb->add_option(
      "--checkpoint", options->checkpoint,
      "A checkpoint, output directory or Hugging Face folder; without it random weights of the shape below");
  options->add_model_to(*verb);
  options->add_maps_to(*verb);
  add_load_options(*verb, *options);
  add_url_options(*verb, *options);
  options->engine.add_to(*verb);
  options->mesh.add_to(*verb);
  verb->add_flag("--json", options->json, "Print JSON");
  verb->footer(
      R"(largest batch: sequences of prompt and steps that the memory for K/V holds. passes a token: how often prompts ran
through iterated layers. of products: prefill's operations, those of all its passes, as a share of the rate of
matrix products. of bound: the time for reading every weight, and every key and value that a layer reads, at the
rate of memory, or for a step's arithmetic at the rate of matrix products, whichever is longer, as a share of the
measured time. Both rates come from this run. rel.: to the first map. KV: of all sequences at their end. whole:
tokens of --steps from arrival to the last one.
Under mpirun --tp times --pp ranks hold one model, and as many replicas as that leaves share the batch; weight bytes
are then rank 0's part.
With --url prompts are random ids below --vocab; a server that keeps the K/V of prompts wants another --seed each time.
Example: kvloom bench serve --layers 6 --hidden 256 --ffn 688 --heads 8 --kv-heads 4 --batch 1 8
Example: kvloom bench serve --precision bf16 --kv-memory 4GiB --batch max --whole --maps none pizza-bottom:6
Example: kvloom bench serve --checkpoint out --first-token 128 512 --rate 2 --requests 64
Example: kvloom bench serve --url http://127.0.0.1:8000 --rate 2 --requests 64 --prompt-tokens 512 --steps 128
Example: mpirun -n 2 kvloom bench serve --pp 2 --precision bf16 --batch 16 --maps none)");
  verb->callback([options] { options->url.empty() ? measure_serve(*options) : measure_url(*options); });
}

}  // namespace kvloom
