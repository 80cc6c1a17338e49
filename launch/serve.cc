#include <fmt/chrono.h>
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>
#include <mutex>

#include "core/device_choice.h"
#include "core/file.h"
#include "core/kv_pages.h"
#include "core/quantity_text.h"
#include "infer/generation_config.h"
#include "infer/server/api_key.h"
#include "infer/server/server.h"
#include "infer/server/server_signals.h"
#include "infer/tokenize/tokenizer_choice.h"
#include "launch/at_least.h"
#include "launch/engine_options.h"
#include "launch/memory_advice.h"
#include "launch/ranks.h"
#include "launch/serving_mesh_options.h"
#include "launch/terminal.h"
#include "launch/verbs.h"

namespace kvloom {
namespace {

struct Options {
  std::string checkpoint;
  EngineOptionSet engine;
  ServingMeshOptions mesh;
  ServerOptions server;
  std::string device = "cpu";
  std::string chat_template = "auto";
  std::string api_key_file;
  std::string largest_body = "16MiB";
  double grace = 30;
  double header_seconds = 10;
  double idle_seconds = 75;
};

// The last part of the path, or of the one above where that is a step's: nothing else of it is shown to clients.
std::string name_of_model(const std::string& path) {
  std::filesystem::path folder = std::filesystem::absolute(path).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  if (folder.filename().string().starts_with("step-")) folder = folder.parent_path();
  const std::string name = folder.filename().string();
  return name.empty() ? "model" : name;
}

std::chrono::milliseconds milliseconds(double seconds, const char* option) {
  if (!(seconds > 0 && seconds < 1e6)) reject_input("{}: {}; right is above 0", option, seconds);
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

// Lines on standard error, from several threads.
void log_line(const std::string& line) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  fmt::print(stderr, "{:%Y-%m-%dT%H:%M:%SZ} {}\n", fmt::gmtime(std::time(nullptr)), line);
  std::fflush(stderr);
}

ModelTexts texts_of(const Options& options, const Tokenizer& tokenizer, const LoadedInferenceModel& loaded) {
  ModelTexts texts;
  texts.tokenizer = &tokenizer;
  texts.ends = text_ends_of(loaded.manifest.huggingface(), loaded.model->config().vocab, options.checkpoint);
  try {
    texts.chat = chat_template_of(tokenizer, options.chat_template, "the model");
  } catch (const InputError& error) {
    if (options.chat_template != "auto") throw;
    texts.no_chat = error.what();
  }
  return texts;
}

void print_table(const Options& options, const Engine& engine, const ModelTexts& texts, const Server& server,
                 const std::string& mesh) {
  const ModelConfig& config = engine.model().config();
  const auto row = [](const char* name, const std::string& value) { fmt::print("{:<14} {}\n", name, value); };
  const EngineOptions& engine_options = engine.options();
  const std::int64_t context = engine_options.context;
  // Of whole pages: windowed layers keep fewer positions than the context has.
  const std::int64_t positions =
      (context + engine_options.page_size - 1) / engine_options.page_size * engine_options.page_size;
  const std::int64_t bytes_per_token =
      paged_bytes(config, engine_options.kv_format, engine_options.page_size, positions, 1) / positions;
  std::int64_t pages = 0;
  for (const PageCounts& group : engine.counts().pages) pages += group.total;
  row("model", fmt::format("{} ({} of weights, context {})", options.server.model_name,
                           format_bytes(static_cast<double>(engine.model().bytes())), context));
  row("kv map", config.kv_map.explicit_form());
  row("K/V a token", format_bytes(static_cast<double>(bytes_per_token)));
  row("K/V pool", fmt::format("{} in {} pages of {} tokens", format_bytes(static_cast<double>(engine_options.kv_bytes)),
                              pages, engine_options.page_size));
  row("largest batch", fmt::format("{} texts", engine_options.max_sequences));
  row("mesh", mesh);
  row("chat", texts.chat ? "by the model's template" : "no: " + texts.no_chat);
  row("API key", options.server.api_key.empty() ? "none" : "wanted");
  row("address", "http://" + server.address());
  flush_output();
}

void serve(Options options, World& world) {
  require_cpu(options.device);
  options.server.api_key = api_key_of(options.server.api_key, options.api_key_file);
  options.server.http.body_bytes = static_cast<std::uint64_t>(parse_bytes(options.largest_body, "--max-body"));
  options.server.http.header_time = milliseconds(options.header_seconds, "--header-timeout");
  options.server.http.idle_time = milliseconds(options.idle_seconds, "--idle-timeout");
  if (options.server.model_name.empty()) options.server.model_name = name_of_model(options.checkpoint);
  options.server.log = log_line;
  ServingRanks ranks(world, options.mesh);
  if (ranks.replicas() > 1) {
    reject_input("serve: {} ranks hold {} replicas; right is one: --tp times --pp as many as the ranks",
                 world.communicator().size(), ranks.replicas());
  }
  CachingCpuAllocator allocator(BlockSizes::kClasses);
  const auto [part, loaded] = ranks.load(options.checkpoint, options.engine.format(), allocator);
  const auto tokenizer =
      make_tokenizer(loaded.manifest.tokenizer_kind(), loaded.manifest.tokenizer(), options.checkpoint);
  if (ranks.prints()) print_warning(warning_of_unheeded(*tokenizer, options.checkpoint));
  options.server.sampling = with_sampling_of(loaded.manifest.huggingface(), {}, options.checkpoint);
  const ModelTexts texts = texts_of(options, *tokenizer, loaded);
  const HeldSignals signals;
  run_engine(*loaded.model, options.engine.options(), part->ranks(), [&](Engine& engine) {
    Server server(engine, texts, options.server);
    print_table(options, engine, texts, server, ranks.describe());
    const SignalWatch watch(signals, {.end = [&] { server.drain(options.grace); },
                                      .state =
                                          [&] {
                                            for (const std::string& line : server.state()) log_line(line);
                                          }});
    server.run();
  });
}

void add_server_options(CLI::App& verb, Options& options) {
  ServerOptions& server = options.server;
  verb.add_option("--host", server.host, "Address to listen at; 0.0.0.0: any")->capture_default_str();
  verb.add_option("--port", server.port, "0: a free one")->capture_default_str();
  verb.add_option("--served-model-name", server.model_name, "What clients call the model; default: its folder's name");
  verb.add_option("--api-key", server.api_key, "Clients must show it; others see it in the list of processes");
  verb.add_option("--api-key-file", options.api_key_file, "The same, in a file of one line");
  verb.add_option("--grace", options.grace, "Seconds in which texts may end after SIGTERM")
      ->check(at_least(0))
      ->capture_default_str();
  verb.add_option("--timeout", server.request_seconds, "Seconds that a request may take")->capture_default_str();
  verb.add_option("--max-requests", server.most_texts, "Texts under way at one time; further ones are refused with 429")
      ->capture_default_str();
  verb.add_option("--max-connections", server.http.connections, "Connections at one time")->capture_default_str();
  verb.add_option("--max-body", options.largest_body, "Of a request")->capture_default_str();
  verb.add_option("--max-n", server.requests.texts, "Texts of one request: prompts times n")->capture_default_str();
  verb.add_option("--header-timeout", options.header_seconds, "Seconds in which a request's headers must come")
      ->capture_default_str();
  verb.add_option("--idle-timeout", options.idle_seconds, "Seconds between a connection's requests")
      ->capture_default_str();
  verb.add_flag("--log-prompts", server.log_prompts, "Write prompts to the log, too");
}

}  // namespace

void add_serve(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("serve", "Serve a checkpoint over HTTP, as OpenAI's API has it");
  verb->add_option("--checkpoint", options->checkpoint,
                   "Checkpoint, an output directory: its best, else newest; or a Hugging Face folder")
      ->required();
  add_server_options(*verb, *options);
  verb->add_option("--chat-template", options->chat_template,
                   "auto (the tokenizer's own), chatml, llama-3, llama-2, mistral")
      ->capture_default_str();
  verb->add_option("--device", options->device, "cpu: where to compute")->capture_default_str();
  options->engine.add_to(*verb);
  options->mesh.add_to(*verb);
  verb->footer(
      "Paths: /v1/completions, /v1/chat/completions, /v1/models, /tokenize, /detokenize, /health, /version, /metrics\n"
      "(Prometheus), and at / a page to try it. SIGTERM: what runs may end within --grace (under mpirun send it\n"
      "to rank 0: mpirun itself gives its ranks a second); SIGUSR1: writes to the log\n"
      "what the server is doing.\n"
      "Example: kvloom serve --checkpoint out --port 8000\n"
      "Example: mpirun -n 4 kvloom serve --checkpoint out --tp 2 --pp 2\n"
      "Example: kvloom serve --checkpoint out --host 0.0.0.0 --api-key-file key.txt --kv-memory 4GiB");
  verb->callback([options] {
    run_in_world([&](World& world) {
      with_memory_advice("--kv-memory or --max-sequences; --precision bf16 takes less too",
                         [&] { serve(*options, world); });
    });
  });
}

}  // namespace kvloom
