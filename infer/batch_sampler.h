// From rows of logits to tokens and scores, many rows at a time. Each row by itself alone.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "infer/sampler.h"

namespace kvloom {

// A token and its log-probability, natural, under the model as it is: before penalties, bias and temperature.
struct TokenScore {
  std::int32_t token = 0;
  float log_probability = 0;
  std::vector<std::pair<std::int32_t, float>> top;  // the likeliest, in order; equal ones by id

  friend bool operator==(const TokenScore&, const TokenScore&) = default;
};

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
