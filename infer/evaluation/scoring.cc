#include "infer/evaluation/scoring.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/error.h"

namespace kvloom {
namespace {

// The last token is only ever a target.
std::span<const std::int32_t> input_of(const TokenRequest& request) {
  return std::span(request.tokens).first(request.tokens.size() - 1);
}

// Each input once, with the targets of all requests that read it.
std::vector<ScoredText> texts_of(std::span<const TokenRequest> requests, const RequestBatch& batch) {
  std::vector<ScoredText> texts;
  for (const SharedInput& input : batch) {
    ScoredText& text = texts.emplace_back(ScoredText{input_of(requests[input.requests.front()]), {}});
    for (const std::size_t index : input.requests) {
      const TokenRequest& request = requests[index];
      const std::int64_t length = std::ssize(text.tokens);
      for (std::int64_t position = length - request.targets; position < length; ++position) {
        text.targets.push_back({position, request.tokens[static_cast<std::size_t>(position) + 1]});
      }
    }
  }
  return texts;
}

}  // namespace

std::vector<RequestBatch> make_batches(std::span<const TokenRequest> requests, std::int64_t batch_tokens) {
  std::vector<std::size_t> order(requests.size());
  std::iota(order.begin(), order.end(), 0);
  // Equal inputs come to stand together; what is equal in all keeps its order.
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
    const auto left = input_of(requests[a]);
    const auto right = input_of(requests[b]);
    if (left.size() != right.size()) return left.size() > right.size();
    return std::ranges::lexicographical_compare(left, right);
  });
  std::vector<RequestBatch> batches;
  std::int64_t longest = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto input = input_of(requests[order[i]]);
    if (i > 0 && std::ranges::equal(input, input_of(requests[order[i - 1]]))) {
      batches.back().back().requests.push_back(order[i]);
      continue;
    }
    if (batches.empty() || longest * static_cast<std::int64_t>(batches.back().size() + 1) > batch_tokens) {
      batches.emplace_back();
      longest = static_cast<std::int64_t>(input.size());
    }
    batches.back().push_back({{order[i]}});
  }
  return batches;
}

std::vector<std::size_t> requests_of(const RequestBatch& batch) {
  std::vector<std::size_t> indices;
  for (const SharedInput& input : batch) indices.insert(indices.end(), input.requests.begin(), input.requests.end());
  return indices;
}

std::vector<Score> score_batch(const Scorer& scorer, const ScoringOptions& options,
                               std::span<const TokenRequest> requests, const RequestBatch& batch) {
  const std::vector<TargetScore> found = scorer.score(texts_of(requests, batch), options);
  std::vector<Score> scores;
  auto next = found.begin();
  for (const std::size_t index : requests_of(batch)) {
    Score score{.log_likelihood = 0, .greedy = true};
    for (std::int64_t i = 0; i < requests[index].targets; ++i, ++next) {
      score.log_likelihood -= static_cast<double>(next->loss);
      score.greedy = score.greedy && next->greedy;
    }
    if (!std::isfinite(score.log_likelihood)) {
      fail("evaluation: the log-likelihood of request {} is {}: the model's weights give no probabilities", index,
           score.log_likelihood);
    }
    scores.push_back(score);
  }
  return scores;
}

}  // namespace kvloom
