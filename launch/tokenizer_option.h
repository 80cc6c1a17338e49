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

// One that is not to be trained. Throws InputError when it cannot be read.
std::unique_ptr<Tokenizer> load_tokenizer(const TokenizerOption& option);

}  // namespace kvloom
