// What a model says of how it wants to be sampled and where its texts end: Hugging Face's generation_config.json. The
// two are read apart: what is wrong with one does not keep the other from being used.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "proto/manifest.pb.h"

namespace kvloom {

// What the model does not say is empty.
struct TextEnds {
  std::vector<std::int32_t> ends;     // eos_token_id: each of these ends a text
  std::optional<std::int32_t> start;  // bos_token_id: the prompt, where that would have no token at all
};

// From what a checkpoint brought along from Hugging Face. As in transformers, the ids of config.json count only where
// there is no generation_config.json. Ids outside of 0 to `vocab` - 1 name no token and are left out. Throws
// InputError, with `where`, for what is no JSON or for ids of another type; other fields are not looked at.
TextEnds text_ends_of(const proto::HuggingFaceOrigin& origin, std::int64_t vocab, const std::string& where);

// How the next token is drawn, as far as someone says it.
struct SamplingSettings {
  std::optional<float> temperature;
  std::optional<std::int64_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
};

// What `given` leaves open, from the model's generation_config.json, as transformers reads it. Only with do_sample true
// does the model sample: at its temperature, 1 where it names none. With do_sample false or absent the temperature is
// 0, always the likeliest, whatever temperature the file names. A top_k of -1 is 0: all. Fields that are given are not
// looked at, and a temperature that is given samples whatever do_sample says. Throws InputError, with `where`, for what
// is no JSON or of another type.
SamplingSettings with_sampling_of(const proto::HuggingFaceOrigin& origin, SamplingSettings given,
                                  const std::string& where);

}  // namespace kvloom
