// config.json of Hugging Face models to and from a ModelConfig: llama, mistral, qwen2, qwen3, and lckv-llama of
// arXiv 2410.14442 (its sharing, windows and passes). Defaults of absent fields are those of transformers.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/config.h"
#include "core/iteration_plan.h"
#include "kernels/dtype.h"

namespace kvloom {

struct HuggingFaceModel {
  std::string family;  // "model_type"
  ModelConfig model;
  Passes passes;                         // of lckv-llama; the defaults for others
  bool output_bias = false;              // o_proj has a bias; kvloom has none, so it must be zero
  std::vector<std::string> kept_fields;  // of which kvloom makes nothing: token ids, dropout, ...
  std::vector<std::string> unheeded;     // what is passed over, as in transformers, in words for a warning
};

// Throws InputError, naming file and field, for no JSON, another family, a shape that makes no sense, and every setting
// that would make it another model than kvloom computes: activations, biases, scalings of the rotary embedding.
HuggingFaceModel parse_huggingface_config(const std::string& json, const std::string& where);

// The family in which a model leaves: `own` if that can say all of it, else the first that can; lckv-llama for sharing.
// Throws InputError when none can.
std::string family_for(const ModelConfig& model, const std::string& own);

// Whether a family writes a bias of o_proj for this model, of zeros: those whose only bias setting covers all four.
bool has_output_bias(const std::string& family, const ModelConfig& model);

// config.json. Fields of `origin` (the config.json that the model came with, or empty) that kvloom makes nothing of are
// kept; all of `origin` if it says the same already.
std::string huggingface_config(const std::string& family, const ModelConfig& model, const Passes& passes, DType dtype,
                               const std::string& origin);

}  // namespace kvloom
