// How a trained model's prompts settle: passes a token, the error of the last token's log-probabilities against
// sequential ones, and the time to the first token, by window, tolerance and starting guess, beside nine whole passes.
// wavefront_bench CHECKPOINT TOKENS.h5 [PROMPTS]: prompts of 128 tokens up to the context, from the validation part.
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/inference_model.h"
#include "data/token_file.h"
#include "infer/engine/engine.h"
#include "kernels/random.h"

namespace kvloom {
namespace {

constexpr std::int64_t kShortest = 128;

std::vector<std::vector<std::int32_t>> prompts_of(const std::string& path, std::int64_t context, int count) {
  const TokenFile file(path);
  std::vector<std::vector<std::int32_t>> prompts;
  for (int i = 0; i < count; ++i) {
    const auto index = static_cast<std::uint64_t>(i);
    const auto length =
        kShortest + static_cast<std::int64_t>(uniform(1, 1, index) * static_cast<double>(context - kShortest));
    const auto room = static_cast<double>(file.count(Part::kValidation) - length);
    std::vector<std::int32_t> prompt(static_cast<std::size_t>(length));
    file.read(Part::kValidation, static_cast<std::int64_t>(uniform(1, 2, index) * room), prompt);
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

struct Prefilled {
  std::vector<float> log_probabilities;  // by token, behind the prompt
  double passes = 0;
  double seconds = 0;
};

Prefilled prefill(const InferenceModel& model, const EngineOptions& options, const std::vector<std::int32_t>& prompt) {
  Engine engine(model, options);
  Request request;
  request.prompt = prompt;
  request.max_new_tokens = 1;
  request.sampling.temperature = 0;
  request.alternatives = static_cast<int>(model.config().vocab);
  engine.submit(request);
  Prefilled result{.log_probabilities = std::vector<float>(static_cast<std::size_t>(model.config().vocab))};
  const auto start = std::chrono::steady_clock::now();
  while (!engine.is_idle()) {
    for (const Event& event : engine.step()) {
      if (!event.token.has_value()) continue;
      result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      result.passes = event.usage.passes_per_token;
      for (const auto& [token, value] : event.token->top)
        result.log_probabilities[static_cast<std::size_t>(token)] = value;
    }
  }
  return result;
}

struct Setting {
  std::string name;
  EngineOptions options;
};

std::vector<Setting> settings(std::int64_t context) {
  EngineOptions base;
  base.prefix_cache = false;
  base.grid = 512;
  std::vector<Setting> all;
  EngineOptions whole = base;
  whole.window = whole.grid = context;
  whole.tolerance = 0;
  whole.prefill_passes = 9;
  all.push_back({"nine whole passes", whole});
  for (const float tolerance : {1e-2F, 1e-3F, 1e-4F}) {
    for (const std::int64_t window : {128, 64, 32, 16, 8}) {
      EngineOptions options = base;
      options.window = window;
      options.tolerance = tolerance;
      all.push_back({fmt::format("W {:>3}, tolerance {:.0e}", window, tolerance), options});
    }
  }
  for (const std::int64_t window : {64, 32}) {
    EngineOptions options = base;
    options.window = window;
    options.guess = StartingGuess::kZeros;
    all.push_back({fmt::format("W {:>3}, tolerance 1e-03, from zeros", window), options});
  }
  return all;
}

void run(const std::string& checkpoint, const std::string& tokens, int count) {
  CachingCpuAllocator allocator;
  const LoadedInferenceModel loaded = load_inference_model(checkpoint, {}, allocator);
  const InferenceModel& model = *loaded.model;
  const auto prompts = prompts_of(tokens, model.config().context - 1, count);
  EngineOptions exact;
  exact.tolerance = 0;
  exact.prefix_cache = false;
  std::vector<Prefilled> wanted;
  for (const auto& prompt : prompts) wanted.push_back(prefill(model, exact, prompt));
  fmt::print("{}: map {}, {} prompts of {} to {} tokens\n", checkpoint, model.config().kv_map.explicit_form(), count,
             kShortest, model.config().context);
  fmt::print("{:<36} {:>15} {:>13} {:>20}\n", "", "passes a token", "largest error", "ms to first token");
  for (const Setting& setting : settings(model.config().context)) {
    double passes = 0;
    double error = 0;
    double seconds = 0;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      const Prefilled got = prefill(model, setting.options, prompts[i]);
      passes += got.passes / static_cast<double>(count);
      seconds += got.seconds / static_cast<double>(count);
      for (std::size_t token = 0; token < got.log_probabilities.size(); ++token) {
        error = std::max(
            error, std::fabs(static_cast<double>(got.log_probabilities[token] - wanted[i].log_probabilities[token])));
      }
    }
    fmt::print("{:<36} {:>15.2f} {:>13.1e} {:>20.1f}\n", setting.name, passes, error, seconds * 1e3);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace kvloom

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: wavefront_bench CHECKPOINT TOKENS.h5 [PROMPTS]\n");
    return 2;
  }
  try {
    kvloom::run(argv[1], argv[2], argc > 3 ? std::atoi(argv[3]) : 100);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "wavefront_bench: %s\n", error.what());
    return 1;
  }
}
