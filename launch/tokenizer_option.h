// --tokenizer of the verbs that take one: where a tokenizer is.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "infer/tokenizer.h"

namespace kvloom {

enum class TokenizerForm : std::uint8_t {
  kBytes,
  kSentencePiece,  // "sentencepiece:FILE"
  kHuggingFace,    // "hf:FILE-OR-FOLDER"
  kTrained,        // "train-sentencepiece:VOCAB"
};

struct TokenizerOption {
  TokenizerForm form = TokenizerForm::kBytes;
  std::filesystem::path path;  // of what is loaded
  std::int64_t vocab = 0;      // of what is trained
};

enum class TokenizerTraining : std::uint8_t { kNotOffered, kOffered };

// Throws InputError that lists what is right.
TokenizerOption parse_tokenizer(const std::string& written, TokenizerTraining training);

// Says on stderr, in one line, what the tokenizer's files say and kvloom does otherwise, if there is any.
void warn_of_unheeded(const Tokenizer& tokenizer, const std::string& where);

// One that is not to be trained, with that warning. Throws InputError when it cannot be read.
std::unique_ptr<Tokenizer> load_tokenizer(const TokenizerOption& option);

}  // namespace kvloom
