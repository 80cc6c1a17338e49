// From rows of logits to tokens and scores, many rows at a time. Each row by itself alone.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <span>
#include <vector>

#include "infer/engine/request.h"

namespace kvloom {

// What is wanted of one row of logits.
struct RowChoice {
  std::span<const float> logits;  // [vocab]
  // The token that is scored; nothing: one is sampled.
  std::optional<std::int32_t> target;
  const SamplingParameters* sampling = nullptr;
  TokenHistory history;
  std::uint64_t seed = 0;
  std::optional<int> alternatives;  // nothing: no log-probability
};

struct ChosenToken {
  TokenScore score;
  std::exception_ptr fault;  // the row's logits give no token: why
};

// Of every row, in order. Rows share the cores.
std::vector<ChosenToken> choose(std::span<const RowChoice> rows);

// log softmax(logits)[token], and of the `alternatives` likeliest; equal logits by id. Sums are in double, in the order
// of ids.
TokenScore score_token(std::span<const float> logits, std::int32_t token, int alternatives);

// The seed of a request's k-th text.
std::uint64_t seed_of_choice(std::uint64_t seed, int choice);

}  // namespace kvloom
