// From queries in text to tokens, as the harness's TemplateLM and get_rolling_token_windows do it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "infer/evaluation/task.h"
#include "infer/tokenizer.h"

namespace kvloom {

// What the model is asked: the log-likelihood of the last `targets` tokens, each behind all before it.
struct TokenRequest {
  std::vector<std::int32_t> tokens;  // context and targets; at most the model's context + 1
  std::int64_t targets = 0;          // of them, from the end
  std::int64_t cut = 0;              // of the context, from its start, that the model's context has no place for
};

class RequestEncoder {
 public:
  // At most `context` tokens are read by the model at once. The tokenizer outlives the encoder.
  RequestEncoder(const Tokenizer& tokenizer, std::int64_t context) : tokenizer_(tokenizer), context_(context) {}

  // White space at the end of the query's context goes over to its continuation. Context and continuation are encoded
  // together, and the targets are what is behind as many tokens as the context alone has; they stand behind the context
  // encoded alone, also where a token of both together spans the join. An empty context becomes the
  // prefix token (or the first target, where that is the prefix token). What is too long loses tokens at its start.
  // Throws InputError with `place` when nothing is left to score or the targets exceed the model's context.
  TokenRequest pair(const Query& query, const std::string& place) const;

  // The text's tokens in windows of at most the model's context, each token a target once: the first window begins
  // with the prefix token, each further one with the last target before it, and the last is filled up with what
  // came before.
  std::vector<TokenRequest> windows(const std::string& text) const;

  // The ids with what the tokenizer puts around a text, unless the text itself begins with the prefix token.
  std::vector<std::int32_t> encode(std::string_view text) const;

 private:
  const Tokenizer& tokenizer_;
  std::int64_t context_;
};

// The windows of `tokens`, of which all are targets.
std::vector<TokenRequest> rolling_windows(std::span<const std::int32_t> tokens, std::int32_t prefix,
                                          std::int64_t context);

}  // namespace kvloom
