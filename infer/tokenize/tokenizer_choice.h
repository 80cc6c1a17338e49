// A tokenizer as a user names it: where it is, or what is to be trained.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
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

// In one line, what the tokenizer's files say and kvloom does otherwise; empty: nothing.
std::string warning_of_unheeded(const Tokenizer& tokenizer, const std::string& where);

// One that is not to be trained; `warn` gets that line, if there is one. Throws InputError when it cannot be read.
std::unique_ptr<Tokenizer> load_tokenizer(const TokenizerOption& option,
                                          const std::function<void(const std::string&)>& warn);

}  // namespace kvloom
