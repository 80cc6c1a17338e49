#include "infer/batch_sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/error.h"
#include "kernels/random.h"

namespace kvloom {
namespace {

std::vector<std::int32_t> likeliest(std::span<const float> logits, int count) {
  std::vector<std::int32_t> tokens(logits.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  const auto kept = std::min<std::ptrdiff_t>(count, std::ssize(tokens));
  std::partial_sort(tokens.begin(), tokens.begin() + kept, tokens.end(), [&](std::int32_t a, std::int32_t b) {
    const float left = logits[static_cast<std::size_t>(a)];
    const float right = logits[static_cast<std::size_t>(b)];
    return left != right ? left > right : a < b;
  });
  tokens.resize(static_cast<std::size_t>(kept));
  return tokens;
}

TokenScore choose_one(const RowChoice& row) {
  if (row.target.has_value()) return score_token(row.logits, *row.target, row.alternatives.value_or(0));
  SamplingParameters sampling = *row.sampling;
  sampling.seed = row.seed;
  const std::int32_t token = sample_token(row.logits, row.history, sampling, row.history.tokens.size());
  if (!row.alternatives.has_value()) return {.token = token, .log_probability = 0, .top = {}};
  return score_token(row.logits, token, *row.alternatives);
}

}  // namespace

TokenScore score_token(std::span<const float> logits, std::int32_t token, int alternatives) {
  if (token < 0 || static_cast<std::size_t>(token) >= logits.size()) {
    fail("scoring: token {} is not in a vocabulary of {}", token, logits.size());
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit) - largest);
  const double log_total = largest + std::log(total);
  if (!std::isfinite(log_total)) fail("scoring: the logits' sum is {}; the model's output is broken", log_total);
  const auto log_probability = [&](std::int32_t of) {
    return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(of)]) - log_total);
  };
  TokenScore score{.token = token, .log_probability = log_probability(token), .top = {}};
  if (alternatives == 0) return score;
  for (const std::int32_t other : likeliest(logits, alternatives))
    score.top.emplace_back(other, log_probability(other));
  return score;
}

std::vector<ChosenToken> choose(std::span<const RowChoice> rows) {
  std::vector<ChosenToken> chosen(rows.size());
  const auto count = std::ssize(rows);
#pragma omp parallel for schedule(dynamic) if (count > 1)
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    const auto row = static_cast<std::size_t>(i);
    try {
      chosen[row].score = choose_one(rows[row]);
    } catch (const Error&) {
      chosen[row].fault = std::current_exception();
    }
  }
  return chosen;
}

std::uint64_t seed_of_choice(std::uint64_t seed, int choice) {
  if (choice == 0) return seed;
  const RandomBlock block = random_block(seed, stream_id("choice"), static_cast<std::uint64_t>(choice));
  return (std::uint64_t{block.words[0]} << 32) | block.words[1];
}

}  // namespace kvloom
