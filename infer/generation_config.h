// What a model says of how it wants to be sampled and where its texts end: Hugging Face's generation_config.json.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "proto/manifest.pb.h"

namespace kvloom {

// What the model does not say is empty.
struct GenerationConfig {
  std::vector<std::int32_t> ends;     // eos_token_id: each of these ends a text
  std::optional<std::int32_t> start;  // bos_token_id: stands before a text where nothing else does
  std::optional<float> temperature;
  std::optional<std::int64_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
};

// From what a checkpoint brought along from Hugging Face. Where generation_config.json does not name ends or start,
// those of config.json count, as in transformers. Ids outside of 0 to `vocab` - 1 name no token and are left out.
// do_sample is not read: as in vLLM and llama.cpp, temperature alone says whether to sample. Throws InputError, with
// `where`, for what is no JSON or of another type.
GenerationConfig generation_config_of(const proto::HuggingFaceOrigin& origin, std::int64_t vocab,
                                      const std::string& where);

}  // namespace kvloom
