// Log-likelihoods of token requests: which are computed together, and how.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/iteration_plan.h"
#include "core/model.h"
#include "infer/evaluation/requests.h"

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

enum class ScoringForm : std::uint8_t {
  kParallel,    // iterated passes (DESIGN 5)
  kSequential,  // token by token, as decoding computes
};

struct ScoringOptions {
  ScoringForm form = ScoringForm::kParallel;
  Passes passes;
};

// The scores of a batch's requests: those of its inputs, one after the other. Throws Error when one is not finite.
std::vector<Score> score_batch(const Model& model, const ScoringOptions& options,
                               std::span<const TokenRequest> requests, const RequestBatch& batch);

// The requests of a batch in the order of score_batch.
std::vector<std::size_t> requests_of(const RequestBatch& batch);

}  // namespace kvloom
