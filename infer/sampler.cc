#include "infer/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "core/ops.h"
#include "kernels/error.h"
#include "kernels/random.h"
#include "kernels/sample.h"

namespace kvloom {
namespace {

// Useful ones lie near 1; beyond these, no model's logits would mean anything any more.
constexpr float kSmallestPenalty = 0.01f;
constexpr float kLargestPenalty = 100;
// OpenAI's ranges.
constexpr float kMostPenalty = 2;
constexpr float kMostBias = 100;

struct Candidate {
  std::int32_t token;
  double weight;  // probability before renormalisation
};

bool more_probable(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

void require(bool holds, const char* field, double value, const char* wanted) {
  if (!holds) reject_input("sampling: {} is {}; it must be {}", field, value, wanted);
}

// One score at least is finite, none is NaN or +infinity: what every later step takes for granted.
void check_scores(std::span<const float> scores, const char* what) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  // Without branches, so that the compiler takes several at once.
  int all_below = 1;
  int any_above = 0;
  for (const float score : scores) {
    all_below &= static_cast<int>(score < kInfinity);
    any_above |= static_cast<int>(score > -kInfinity);
  }
  if (all_below != 0 && any_above != 0) return;
  bool any = false;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (std::isnan(scores[i]) || scores[i] == std::numeric_limits<float>::infinity()) {
      fail("sampling: the {} of token {} is {}; the model's output is broken", what, i, scores[i]);
    }
    any = any || std::isfinite(scores[i]);
  }
  if (!any) fail("sampling: none of {} {}s is finite", scores.size(), what);
}

// The first of the largest scores, none of which is NaN.
std::int32_t largest_of(std::span<const float> scores) {
  constexpr std::size_t kLanes = 32;  // that the compiler takes at once, in pieces that then are searched
  constexpr std::size_t kPiece = 32 * kLanes;
  std::size_t found = 0;
  float most = -std::numeric_limits<float>::infinity();
  for (std::size_t first = 0; first < scores.size(); first += kPiece) {
    const auto piece = scores.subspan(first, std::min(kPiece, scores.size() - first));
    std::array<float, kLanes> largest;
    largest.fill(most);
    std::size_t i = 0;
    for (; i + kLanes <= piece.size(); i += kLanes) {
      for (std::size_t n = 0; n < kLanes; ++n) largest[n] = largest[n] < piece[i + n] ? piece[i + n] : largest[n];
    }
    for (; i < piece.size(); ++i) largest[0] = std::max(largest[0], piece[i]);
    const float of_piece = *std::ranges::max_element(largest);
    if (!(of_piece > most)) continue;
    most = of_piece;
    found = first;
  }
  return static_cast<std::int32_t>(std::find(scores.begin() + static_cast<std::ptrdiff_t>(found), scores.end(), most) -
                                   scores.begin());
}

void check_token(std::int32_t token, std::size_t vocab, const char* where) {
  if (token >= 0 && static_cast<std::size_t>(token) < vocab) return;
  fail("sampling: token {} of the {} is not in a vocabulary of {}", token, where, vocab);
}

void add_bias(std::span<const std::pair<std::int32_t, float>> bias, std::vector<float>& logits) {
  for (const auto& [token, added] : bias) {
    check_token(token, logits.size(), "bias");
    logits[static_cast<std::size_t>(token)] += added;
  }
}

void take_penalties(std::span<const std::int32_t> generated, const SamplingParameters& parameters,
                    std::vector<float>& logits) {
  if (parameters.presence_penalty == 0 && parameters.frequency_penalty == 0) return;
  std::vector<std::int32_t> tokens(generated.begin(), generated.end());
  std::ranges::sort(tokens);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    check_token(tokens[i], logits.size(), "history");
    float& logit = logits[static_cast<std::size_t>(tokens[i])];
    if (i == 0 || tokens[i] != tokens[i - 1]) logit -= parameters.presence_penalty;
    logit -= parameters.frequency_penalty;
  }
}

void repeat_less(std::span<const std::int32_t> history, float penalty, std::vector<float>& logits) {
  if (penalty == 1) return;
  const std::vector<float> before = logits;
  for (const std::int32_t token : history) {
    check_token(token, logits.size(), "history");
    // From the logit as it came, so that a repeated token is penalised once.
    const auto i = static_cast<std::size_t>(token);
    logits[i] = before[i] > 0 ? before[i] / penalty : before[i] * penalty;
  }
}

bool changes_logits(const SamplingParameters& p) {
  return p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0 || !p.logit_bias.empty();
}

std::vector<float> penalized(std::span<const float> logits, const TokenHistory& history,
                             const SamplingParameters& parameters) {
  std::vector<float> result(logits.begin(), logits.end());
  add_bias(parameters.logit_bias, result);
  take_penalties(history.tokens.subspan(history.prompt), parameters, result);
  repeat_less(history.tokens, parameters.repetition_penalty, result);
  check_scores(result, "penalised logit");
  return result;
}

// Weights relative to the most probable token's 1.
std::vector<Candidate> candidates_of(std::span<const float> logits, const SamplingParameters& parameters) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<Candidate> candidates;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp((static_cast<double>(logits[i]) - largest) / parameters.temperature);
    if (weight > 0 && weight >= parameters.min_p) candidates.push_back({static_cast<std::int32_t>(i), weight});
  }
  return candidates;
}

double total_of(std::span<const Candidate> candidates) {
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  return total;
}

void keep_top_k(std::vector<Candidate>& candidates, std::int64_t top_k) {
  const auto kept = static_cast<std::size_t>(top_k);
  if (kept == 0 || kept >= candidates.size()) return;
  std::nth_element(candidates.begin(), candidates.begin() + top_k - 1, candidates.end(), more_probable);
  candidates.resize(kept);
}

void keep_top_p(std::vector<Candidate>& candidates, double top_p) {
  if (top_p >= 1) return;
  std::sort(candidates.begin(), candidates.end(), more_probable);
  const double wanted = top_p * total_of(candidates);
  double reached = 0;
  std::size_t kept = 0;
  while (kept < candidates.size() && (kept == 0 || reached < wanted)) reached += candidates[kept++].weight;
  candidates.resize(kept);
}

std::int32_t draw(std::span<const Candidate> candidates, double uniform_value) {
  const double wanted = uniform_value * total_of(candidates);
  double reached = 0;
  for (const Candidate& candidate : candidates) {
    reached += candidate.weight;
    if (wanted < reached) return candidate.token;
  }
  return candidates.back().token;
}

}  // namespace

void check_sampling(const SamplingParameters& parameters) {
  const auto& p = parameters;
  require(std::isfinite(p.temperature) && p.temperature >= 0, "temperature", p.temperature, "0 or more");
  require(p.top_k >= 0, "top_k", static_cast<double>(p.top_k), "0 or more");
  require(p.top_p > 0 && p.top_p <= 1, "top_p", p.top_p, "above 0 and at most 1");
  require(p.min_p >= 0 && p.min_p <= 1, "min_p", p.min_p, "0 to 1");
  require(p.repetition_penalty >= kSmallestPenalty && p.repetition_penalty <= kLargestPenalty, "repetition_penalty",
          p.repetition_penalty, "0.01 to 100");
  require(std::abs(p.presence_penalty) <= kMostPenalty, "presence_penalty", p.presence_penalty, "-2 to 2");
  require(std::abs(p.frequency_penalty) <= kMostPenalty, "frequency_penalty", p.frequency_penalty, "-2 to 2");
  for (const auto& [token, added] : p.logit_bias) {
    require(std::abs(added) <= kMostBias || added == -std::numeric_limits<float>::infinity(), "logit_bias", added,
            "-100 to 100");
  }
}

std::int32_t sample_token(std::span<const float> logits, const TokenHistory& history,
                          const SamplingParameters& parameters, std::uint64_t position) {
  check_sampling(parameters);
  check_scores(logits, "logit");
  std::vector<float> changed;
  if (changes_logits(parameters)) changed = penalized(logits, history, parameters);
  const std::span<const float> scores = changed.empty() ? logits : std::span<const float>(changed);
  if (parameters.temperature == 0) {
    return largest_of(scores);
  }
  std::vector<Candidate> candidates = candidates_of(scores, parameters);
  keep_top_k(candidates, parameters.top_k);
  keep_top_p(candidates, parameters.top_p);
  std::ranges::sort(candidates, {}, &Candidate::token);  // those steps may have taken them out of their order
  return draw(candidates, uniform(parameters.seed, stream_id("sampler"), position));
}

TokenSampler::TokenSampler(Allocator& allocator, std::int64_t vocab, const SamplingParameters& parameters,
                           std::span<const std::int32_t> prompt)
    : allocator_(allocator),
      vocab_(vocab),
      parameters_(parameters),
      history_(prompt.begin(), prompt.end()),
      prompt_(prompt.size()) {
  check_sampling(parameters);
  if (allocator.device().kind == Device::Kind::kCpu) return;
  if (parameters.presence_penalty != 0 || parameters.frequency_penalty != 0 || !parameters.logit_bias.empty()) {
    reject_input("sampling: a GPU knows no presence_penalty, frequency_penalty and logit_bias; right is --device cpu");
  }
  std::vector<std::uint8_t> seen(static_cast<std::size_t>(vocab), 0);
  for (const std::int32_t token : prompt) {
    check_token(token, seen.size(), "history");
    seen[static_cast<std::size_t>(token)] = 1;
  }
  seen_ = Tensor::of<std::uint8_t>(allocator, {vocab}, seen);
  const SampleRow row{.seed = parameters.seed,
                      .position = prompt.size(),
                      .top_k = parameters.top_k,
                      .temperature = parameters.temperature,
                      .top_p = parameters.top_p,
                      .min_p = parameters.min_p,
                      .repetition_penalty = parameters.repetition_penalty};
  const auto bytes = std::bit_cast<std::array<std::uint8_t, sizeof(row)>>(row);
  row_ = Tensor::of<std::uint8_t>(allocator, {std::ssize(bytes)}, bytes);
}

void TokenSampler::choose(const Tensor& logits, Tensor& token) {
  if (logits.count() != vocab_) fail("sampling: {} logits for a vocabulary of {}", logits.count(), vocab_);
  if (token.count() != 1) fail("sampling: a place of {} for one token", token.count());
  if (allocator_.device().kind == Device::Kind::kCpu) {
    history_.push_back(sample_token(logits.as<float>(), {history_, prompt_}, parameters_, history_.size()));
    token.as<std::int32_t>().front() = history_.back();
    return;
  }
  ops::run(allocator_.device(), SampleTokens{.logits = logits.as<float>().data(),
                                             .choices = static_cast<SampleRow*>(row_.data()),
                                             .seen = seen_.as<std::uint8_t>().data(),
                                             .tokens = token.as<std::int32_t>().data(),
                                             .rows = 1,
                                             .vocab = vocab_});
}

std::int32_t TokenSampler::read(const Tensor& logits, const Tensor& token) const {
  const std::int32_t chosen = token.values<std::int32_t>().front();
  if (chosen < 0) check_scores(logits.values<float>(), "logit");  // says what is wrong with them
  if (chosen < 0 || chosen >= vocab_) fail("sampling: the device chose token {} of {}", chosen, vocab_);
  return chosen;
}

TokenSampler::Choice TokenSampler::next(const Tensor& logits) {
  Tensor where = Tensor::empty(allocator_, {1}, DType::kI32);
  choose(logits, where);
  const std::int32_t token = read(logits, where);
  return {token, where};
}

}  // namespace kvloom
