#include "launch/sampling_options.h"

#include "core/convert/huggingface_origin.h"
#include "kernels/error.h"
#include "launch/at_least.h"

namespace kvloom {
namespace {

constexpr SamplingParameters kOwn{.temperature = 0.8f};

// As in vLLM and llama.cpp, -1 asks for all too.
std::int64_t counted(std::int64_t top_k) { return top_k == -1 ? 0 : top_k; }

SamplingParameters completed(const SamplingOptions& options, const SamplingSettings& settings) {
  return {.temperature = settings.temperature.value_or(kOwn.temperature),
          .top_k = counted(settings.top_k.value_or(kOwn.top_k)),
          .top_p = settings.top_p.value_or(kOwn.top_p),
          .min_p = settings.min_p.value_or(kOwn.min_p),
          .repetition_penalty = settings.repetition_penalty.value_or(kOwn.repetition_penalty),
          .presence_penalty = options.presence_penalty,
          .frequency_penalty = options.frequency_penalty,
          .seed = options.seed};
}

}  // namespace

void SamplingOptions::add_to(CLI::App& verb) {
  verb.add_option(
      "--temperature", given.temperature,
      "0: always the likeliest; default: what the model's generation_config.json says (0 unless do_sample is "
      "true, then its temperature or 1), without one 0.8");
  verb.add_option("--top-k", given.top_k, "Only the k likeliest; 0 or -1: all; default: the model's, else 0");
  verb.add_option("--top-p", given.top_p, "Only the likeliest that make up p; default: the model's, else 1");
  verb.add_option("--min-p", given.min_p,
                  "Only those p times as likely as the likeliest; default: the model's, else 0");
  verb.add_option("--repetition-penalty", given.repetition_penalty,
                  "0.01 to 100; above 1: repeat less; default: the model's, else 1");
  verb.add_option("--presence-penalty", presence_penalty, "-2 to 2; above 0: tokens that the text has come less often")
      ->capture_default_str();
  verb.add_option("--frequency-penalty", frequency_penalty, "-2 to 2; the same for each time that it has them")
      ->capture_default_str();
  verb.add_option("--seed", seed, "Equal seeds give equal texts")->check(at_least(0))->capture_default_str();
}

void check_given(const SamplingOptions& options) { check_sampling(completed(options, options.given)); }

SamplingParameters sampling_for(const SamplingOptions& options, const proto::HuggingFaceOrigin& model,
                                const std::string& where) {
  check_given(options);
  const SamplingParameters sampling = completed(options, with_sampling_of(model, options.given, where));
  try {
    check_sampling(sampling);
  } catch (const InputError& error) {
    reject_input("{}: {}: {}", where, kGenerationConfig, error.what());
  }
  return sampling;
}

}  // namespace kvloom
