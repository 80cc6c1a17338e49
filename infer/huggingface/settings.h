// What stands beside a tokenizer.json and changes it, as transformers 4.57 does when it loads the folder. (transformers
// 5 takes the added tokens too, add_prefix_space for GPT2Tokenizer and Qwen2Tokenizer alone, and no longer heeds
// add_bos_token and add_eos_token.)
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"

namespace kvloom::huggingface {

struct AddedContent {
  std::string content;
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = false;
  bool special = false;
};

struct Settings {
  std::optional<std::string> start;  // bos_token
  std::optional<std::string> end;    // eos_token
  std::string family;                // tokenizer_class without "Fast"; empty where none is named
  std::optional<bool> adds_start;    // add_bos_token
  std::optional<bool> adds_end;      // add_eos_token
  std::optional<bool> adds_space;    // add_prefix_space
  // In the order in which they are added where the tokenizer has none of that content: added_tokens_decoder, or
  // else added_tokens.json, by id; then special tokens, additional_special_tokens among them.
  std::vector<AddedContent> tokens;
};

// From tokenizer_config.json, special_tokens_map.json and added_tokens.json, as far as they are among the files. Throws
// InputError, beginning with `where`, for what is no JSON or of another type.
Settings read_settings(std::span<const NamedFile> files, const std::string& where);

// Whether the class reads add_bos_token and add_eos_token; then what it takes for absent ones.
struct SurroundDefaults {
  bool start;
  bool end;
};
std::optional<SurroundDefaults> surround_defaults(const std::string& family);

// The first of what apply_settings does: to `added_tokens` of a tokenizer with model.vocab.
void add_tokens(const Settings& settings, nlohmann::json& tokenizer);

// `tokenizer` = as the settings have it: added tokens with the next free ids, the space before a text, the
// post-processor. Appends in words what is not heeded.
void apply_settings(const Settings& settings, nlohmann::json& tokenizer, std::vector<std::string>& unheeded);

}  // namespace kvloom::huggingface
