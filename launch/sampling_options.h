// The options of verbs that let a model write: how the next token is drawn.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "infer/generation_config.h"
#include "infer/sampler.h"

namespace kvloom {

// Those that were given.
struct SamplingOptions {
  std::optional<float> temperature;
  std::optional<std::int64_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::uint64_t seed = 0;

  void add_to(CLI::App& verb);
};

// What was given goes before what the model's generation_config.json says, and that before kvloom's own: temperature
// 0.8, all tokens, no penalty. Throws InputError for a value that makes no sense; one of the model's, with `where`.
SamplingParameters sampling_for(const SamplingOptions& given, const GenerationConfig& model, const std::string& where);

}  // namespace kvloom
