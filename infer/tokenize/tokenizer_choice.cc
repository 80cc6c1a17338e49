#include "infer/tokenize/tokenizer_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::size_t kMostDigits = 7;

bool is_number(const std::string& text) {
  return text.size() <= kMostDigits && std::ranges::all_of(text, [](unsigned char c) { return std::isdigit(c) != 0; });
}

}  // namespace

TokenizerOption parse_tokenizer(const std::string& written, TokenizerTraining training) {
  if (written == "bytes") return {};
  const bool trains = training == TokenizerTraining::kOffered;
  const std::size_t colon = written.find(':');
  const std::string kind = written.substr(0, colon);
  const std::string value = colon == std::string::npos ? "" : written.substr(colon + 1);
  if (!value.empty()) {
    if (kind == "sentencepiece") return {.form = TokenizerForm::kSentencePiece, .path = value};
    if (kind == "hf") return {.form = TokenizerForm::kHuggingFace, .path = value};
    if (trains && kind == "train-sentencepiece" && is_number(value)) {
      return {.form = TokenizerForm::kTrained, .path = {}, .vocab = std::stoll(value)};
    }
  }
  reject_input("--tokenizer '{}': right are bytes, sentencepiece:FILE{} hf:FILE-OR-FOLDER{}", written,
               trains ? "," : " and", trains ? " and train-sentencepiece:VOCAB" : "");
}

std::string warning_of_unheeded(const Tokenizer& tokenizer, const std::string& where) {
  const std::string unheeded = tokenizer.unheeded();
  return unheeded.empty() ? "" : fmt::format("warning: '{}': not heeded: {}", where, unheeded);
}

std::unique_ptr<Tokenizer> load_tokenizer(const TokenizerOption& option,
                                          const std::function<void(const std::string&)>& warn) {
  switch (option.form) {
    case TokenizerForm::kBytes:
      return make_byte_tokenizer();
    case TokenizerForm::kSentencePiece:
      return load_sentencepiece(option.path);
    case TokenizerForm::kHuggingFace: {
      std::unique_ptr<Tokenizer> tokenizer = load_huggingface(option.path);
      const std::string warning = warning_of_unheeded(*tokenizer, option.path.string());
      if (warn && !warning.empty()) warn(warning);
      return tokenizer;
    }
    case TokenizerForm::kTrained:
      break;
  }
  fail("tokenizer: one of {} ids is to be trained, and none to be loaded", option.vocab);
}

}  // namespace kvloom
