// What make_tokenizer chooses from.
#pragma once

#include <memory>
#include <string>

#include "infer/tokenizer.h"

namespace kvloom {

// From a SentencePiece model's bytes.
std::unique_ptr<Tokenizer> make_sentencepiece(const std::string& model, const std::string& where);

// From a tokenizer.model and the tokenizer_config.json beside it.
std::unique_ptr<Tokenizer> make_configured_sentencepiece(std::vector<NamedFile> files, const std::string& where);

// From proto::TokenizerFiles.
std::unique_ptr<Tokenizer> make_huggingface(const std::string& files, const std::string& where);

}  // namespace kvloom
