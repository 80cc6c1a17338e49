// Log-likelihoods of token requests: which are computed together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "infer/evaluation/requests.h"
#include "infer/evaluation/scorer.h"

namespace kvloom {

struct Score {
  double log_likelihood = 0;  // nats
  bool greedy = false;        // each target is the likeliest token where it stands

  friend bool operator==(const Score&, const Score&) = default;
};

// Requests that read the same tokens, whatever their targets: the model reads them once.
struct SharedInput {
  std::vector<std::size_t> requests;
};

using RequestBatch = std::vector<SharedInput>;

// All requests in batches, longest first, each of at most `batch_tokens` tokens with what fills its inputs up to the
// longest (or of a single input). A pure function of the requests: whoever computes a batch gets the same.
std::vector<RequestBatch> make_batches(std::span<const TokenRequest> requests, std::int64_t batch_tokens);

// The scores of a batch's requests: those of its inputs, one after the other. Throws Error when one is not finite.
std::vector<Score> score_batch(const Scorer& scorer, const ScoringOptions& options,
                               std::span<const TokenRequest> requests, const RequestBatch& batch);

// The requests of a batch in the order of score_batch.
std::vector<std::size_t> requests_of(const RequestBatch& batch);

}  // namespace kvloom
