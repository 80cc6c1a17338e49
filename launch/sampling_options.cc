#include "launch/sampling_options.h"

#include "core/convert/huggingface_origin.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr SamplingParameters kOwn{.temperature = 0.8f};

template <typename T>
T first_of(const std::optional<T>& given, const std::optional<T>& model, T own) {
  return given ? *given : model.value_or(own);
}

SamplingParameters merged(const SamplingOptions& given, const GenerationConfig& model) {
  return {.temperature = first_of(given.temperature, model.temperature, kOwn.temperature),
          .top_k = first_of(given.top_k, model.top_k, kOwn.top_k),
          .top_p = first_of(given.top_p, model.top_p, kOwn.top_p),
          .min_p = first_of(given.min_p, model.min_p, kOwn.min_p),
          .repetition_penalty = first_of(given.repetition_penalty, model.repetition_penalty, kOwn.repetition_penalty),
          .seed = given.seed};
}

}  // namespace

void SamplingOptions::add_to(CLI::App& verb) {
  verb.add_option("--temperature", temperature, "0: always the likeliest; default: the model's, else 0.8");
  verb.add_option("--top-k", top_k, "Only the k likeliest; 0: all; default: the model's, else 0");
  verb.add_option("--top-p", top_p, "Only the likeliest that make up p; default: the model's, else 1");
  verb.add_option("--min-p", min_p, "Only those p times as likely as the likeliest; default: the model's, else 0");
  verb.add_option("--repetition-penalty", repetition_penalty,
                  "0.01 to 100; above 1: repeat less; default: the model's, else 1");
  verb.add_option("--seed", seed, "Equal seeds give equal texts")->check(CLI::NonNegativeNumber)->capture_default_str();
}

SamplingParameters sampling_for(const SamplingOptions& given, const GenerationConfig& model, const std::string& where) {
  check_sampling(merged(given, {}));
  const SamplingParameters sampling = merged(given, model);
  try {
    check_sampling(sampling);
  } catch (const InputError& error) {
    reject_input("{}: {}: {}", where, kGenerationConfig, error.what());
  }
  return sampling;
}

}  // namespace kvloom
