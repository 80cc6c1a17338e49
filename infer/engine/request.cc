#include "infer/engine/request.h"

#include <algorithm>
#include <iterator>
#include <span>

#include "kernels/error.h"

namespace kvloom {
namespace {

void check_tokens(std::span<const std::int32_t> tokens, std::int64_t vocab, const char* what) {
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= vocab) reject_input("{} {}: right are the ids 0 to {}", what, token, vocab - 1);
  }
}

}  // namespace

void check_request(const Request& request, std::int64_t context, std::int64_t vocab) {
  const auto given = std::ssize(request.prompt);
  check_sampling(request.sampling);
  check_tokens(request.prompt, vocab, "prompt: token");
  for (const auto& bias : request.sampling.logit_bias)
    check_tokens(std::span(&bias.first, 1), vocab, "logit_bias: token");
  if (given == 0) reject_input("prompt: has no token; right is one or more");
  if (request.n < 1) reject_input("n: {}; right is 1 or more", request.n);
  if (request.max_new_tokens < 0) reject_input("max_new_tokens: {}; right is 0 or more", request.max_new_tokens);
  if (request.alternatives.value_or(0) < 0) reject_input("logprobs: {}; right is 0 or more", *request.alternatives);
  const std::int64_t room = request.max_new_tokens > 0 ? context - 1 : context;
  if (given > room) {
    reject_input("prompt: {} tokens; the context is {}{}", given, context,
                 request.max_new_tokens > 0 ? ", of which one must be left" : "");
  }
  const bool scores = request.prompt_scores.has_value() && request.prompt_scores->first < given;
  if (request.prompt_scores.has_value() && request.prompt_scores->first < 1) {
    reject_input("prompt_logprobs: from token {} on; right is 1 or more", request.prompt_scores->first);
  }
  if (request.max_new_tokens == 0 && !scores) {
    reject_input("max_new_tokens: 0, and no token of the prompt is to be scored; right is one of the two");
  }
}

}  // namespace kvloom
