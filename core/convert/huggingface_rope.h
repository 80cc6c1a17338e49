// Rotary embedding as config.json has it: `rope_theta` with `rope_scaling`, or both in `rope_parameters` (transformers
// 5). Where both objects stand, rope_scaling counts, as in transformers.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/convert/json_fields.h"

namespace kvloom {

// model.rope_theta and model.rope_scaling = what the fields say. Throws InputError naming every kind but default,
// linear, dynamic, llama3 and yarn, and every setting that kvloom does not compute. Appends to `unheeded`, in words,
// what stands there and means nothing.
void read_rope(JsonFields& fields, proto::ModelConfig& model, std::vector<std::string>& unheeded);

// The value of `rope_scaling`; null for none. Throws InputError for dynamic scaling that stretches to the context
// already: Hugging Face begins to beyond it.
nlohmann::ordered_json rope_scaling_json(const ModelConfig& model);

}  // namespace kvloom
