// The options of verbs that let a model write: how the next token is drawn.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "infer/generation_config.h"
#include "infer/sampler.h"

namespace kvloom {

struct SamplingOptions {
  SamplingSettings given;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::uint64_t seed = 0;

  void add_to(CLI::App& verb);
};

// Throws InputError for an option whose value makes no sense.
void check_given(const SamplingOptions& options);

// What was given goes before what the model's generation_config.json says (infer/generation_config.h), and that before
// kvloom's own: temperature 0.8, all tokens, no penalty. Throws InputError for a value that makes no sense; one of the
// model's, with `where`.
SamplingParameters sampling_for(const SamplingOptions& options, const proto::HuggingFaceOrigin& model,
                                const std::string& where);

}  // namespace kvloom
