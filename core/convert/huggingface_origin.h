// What a model brought along from Hugging Face beside its weights.
#pragma once

#include <string_view>

#include "proto/manifest.pb.h"

namespace kvloom {

inline constexpr std::string_view kConfigJson = "config.json";
inline constexpr std::string_view kGenerationConfig = "generation_config.json";

// Takes away what speaks of the model's tokenizer, for another to take its place: the tokenizer's files, and the ids of
// special tokens in config.json and generation_config.json. Throws InputError where one of these is no JSON object.
void forget_tokenizer(proto::HuggingFaceOrigin& origin);

}  // namespace kvloom
