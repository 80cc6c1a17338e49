// What `kvloom generate` is asked for, and the two things that it does: one text to the terminal, or many to a file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/inference_model.h"
#include "infer/generation/generation.h"
#include "launch/engine_options.h"
#include "launch/sampling_options.h"
#include "launch/serving_mesh_options.h"

namespace kvloom {

struct GenerateOptions {
  std::string checkpoint;
  std::vector<std::string> prompts;
  std::string prompt_file;    // "-": standard input
  std::string prompts_file;   // likewise
  std::string chat_template;  // empty: --prompt is a text to go on with
  std::string system;
  std::string output;
  std::string resume = "no";
  bool strict = false;
  std::int64_t max_new_tokens = 128;
  SamplingOptions sampling;
  int n = 1;
  bool ignore_eos = false;
  std::vector<std::string> stops;
  std::optional<int> logprobs;
  std::optional<int> prompt_logprobs;
  std::string device = "cpu";
  // What a text is then follows from its prompt and options alone, not from what was generated before.
  EngineOptionSet engine{EngineOptions{.reuse_generated = false}};
  ServingMeshOptions mesh;
  bool json = false;
};

// What all texts of a run share.
struct GenerateRun {
  const GenerateOptions& options;
  const InferenceModel& model;
  const TextModel& text;
  TextRequest request;  // with the options' values, and no prompt
  ServingRanks& ranks;
  ModelPart& part;
};

// What --prompt, or the content of --prompt-file, asks for: a text to go on with, or what a user says.
TextPrompt spoken_prompt(const GenerateOptions& options, const std::string& text);

void generate_one(const GenerateRun& run);
void generate_many(const GenerateRun& run);

// One line on what --prefill-passes cut short.
std::string capped_words(const GenerateOptions& options, const std::string& what);

}  // namespace kvloom
