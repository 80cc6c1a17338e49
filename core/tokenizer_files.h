// A tokenizer as token files and checkpoints carry it, and the files by which other tools know it. What the files say
// belongs to infer/tokenizer.h.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"

namespace kvloom {

inline constexpr std::string_view kTokenizerJson = "tokenizer.json";
inline constexpr std::string_view kTokenizerModel = "tokenizer.model";
inline constexpr std::string_view kTokenizerConfig = "tokenizer_config.json";
// What may lie beside tokenizer.json, or tokenizer.model, and goes where it goes, in this order.
inline constexpr std::array<std::string_view, 4> kBesideTokenizerJson = {kTokenizerConfig, "special_tokens_map.json",
                                                                         "chat_template.jinja", "chat_template.json"};

struct CarriedTokenizer {
  std::string kind;     // "bytes", "sentencepiece", "huggingface"; empty: none
  std::string content;  // as infer/tokenizer.h serializes it; of "huggingface", proto::TokenizerFiles
};

// The tokenizer among a folder's files, tokenizer.json before tokenizer.model; nothing if there is neither. A
// tokenizer.model is "sentencepiece" alone and "huggingface" with a tokenizer_config.json, which says what stands
// around a text. Equal files give what `kvloom tokenize` stores of that folder.
std::optional<CarriedTokenizer> tokenizer_among(const std::vector<NamedFile>& files);

// The files of a tokenizer; none for kinds that have none. Throws InputError, with `where`, for content that is no
// tokenizer of its kind.
std::vector<NamedFile> files_of(const CarriedTokenizer& tokenizer, const std::string& where);

// Whether a file of that name speaks of a tokenizer, so that it goes when another takes its place.
bool is_of_tokenizer(std::string_view name);

// Whether ids mean the same to both: equal models. What lies beside these says nothing of that.
bool same_tokenizer(const CarriedTokenizer& one, const CarriedTokenizer& other);

}  // namespace kvloom
