#include "infer/evaluation/requests.h"

#include <algorithm>

#include "infer/text/python_text.h"
#include "kernels/error.h"

namespace kvloom {

std::vector<std::int32_t> RequestEncoder::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  tokenizer_.encode(text, Place::kStart, ids);
  if (!ids.empty() && ids.front() == tokenizer_.prefix_id()) return ids;
  const std::vector<std::int32_t> before = tokenizer_.start_ids();
  const std::vector<std::int32_t> behind = tokenizer_.end_ids();
  ids.insert(ids.begin(), before.begin(), before.end());
  ids.insert(ids.end(), behind.begin(), behind.end());
  return ids;
}

TokenRequest RequestEncoder::pair(const Query& query, const std::string& place) const {
  TokenRequest request;
  std::size_t context = 1;
  if (query.context.empty()) {
    tokenizer_.encode(query.continuation, Place::kStart, request.tokens);
    if (request.tokens.empty() || request.tokens.front() != tokenizer_.prefix_id()) {
      request.tokens.insert(request.tokens.begin(), tokenizer_.prefix_id());
    }
  } else {
    const std::string_view without_space = right_stripped(query.context);
    request.tokens = encode(query.context + query.continuation);
    context = encode(without_space).size();
    if (context == 0) reject_input("{}: the context '{}' has no token", place, query.context.substr(0, 60));
  }
  if (request.tokens.size() <= context) {
    reject_input("{}: '{}' has no token of its own behind the context", place, query.continuation.substr(0, 60));
  }
  request.targets = static_cast<std::int64_t>(request.tokens.size() - context);
  if (request.targets > context_) {
    reject_input("{}: a continuation of {} tokens; the model's context is {}", place, request.targets, context_);
  }
  request.cut = std::max<std::int64_t>(0, static_cast<std::int64_t>(request.tokens.size()) - (context_ + 1));
  request.tokens.erase(request.tokens.begin(), request.tokens.begin() + request.cut);
  return request;
}

std::vector<TokenRequest> RequestEncoder::windows(const std::string& text) const {
  return rolling_windows(encode(text), tokenizer_.prefix_id(), context_);
}

std::vector<TokenRequest> rolling_windows(std::span<const std::int32_t> tokens, std::int32_t prefix,
                                          std::int64_t context) {
  std::vector<TokenRequest> windows;
  const auto count = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t begin = 0; begin < count;) {
    const std::int64_t end = std::min(count, begin + context);
    // The first window has nothing but the prefix before it; a later one reaches back as far as the context does.
    const std::int64_t first = begin == 0 ? 0 : end - context - 1;
    TokenRequest window{.tokens = {tokens.begin() + first, tokens.begin() + end}, .targets = end - begin};
    if (begin == 0) window.tokens.insert(window.tokens.begin(), prefix);
    windows.push_back(std::move(window));
    begin = end;
  }
  return windows;
}

}  // namespace kvloom
