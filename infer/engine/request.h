// What is asked of the engine, and what it answers. A request is a pure function: its tokens and log-probabilities
// follow from the model, the prompt, the sampling and the engine's numeric options, never from what else runs (DESIGN
// 12).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "infer/batch_sampler.h"
#include "infer/sampler.h"

namespace kvloom {

using RequestId = std::uint64_t;

// Scores of the prompt's own tokens.
struct PromptScores {
  std::int64_t first =
      1;                 // of tokens from this one on; the first token of all has none, since nothing stands before it
  int alternatives = 0;  // and of so many of the likeliest at each place
};

struct Request {
  std::vector<std::int32_t> prompt;  // 1 token or more
  std::int64_t max_new_tokens = 16;  // 0: the prompt is only scored
  SamplingParameters sampling;
  int n = 1;                        // texts; the k-th draws by a seed made of the request's and k, the 0-th by that
  std::vector<std::int32_t> ends;   // ids that end a text
  std::optional<int> alternatives;  // log-probabilities are wanted: of so many of the likeliest beside the chosen
  std::optional<PromptScores> prompt_scores;
  int priority = 0;                // higher first
  std::optional<double> deadline;  // seconds on the clock that the engine is handed
};

// Throws InputError for a request that an engine of this context and vocabulary can never serve: what is wrong with it,
// and what would be right.
void check_request(const Request& request, std::int64_t context, std::int64_t vocab);

enum class FinishReason : std::uint8_t {
  kNone,      // it goes on
  kStop,      // one of `ends` came
  kLength,    // max_new_tokens, or the context is full
  kDeadline,  // its time was over
  kFailed,    // the model gave no numbers to choose from
};

struct Usage {
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;  // of the prompt, found in the prefix cache
  double passes_per_token = 1;     // that prefill ran in iterated segments
  bool capped = false;             // some tokens of the prompt settled only because of prefill_passes
  int preemptions = 0;
};

// What a step brought for one text of a request.
struct Event {
  RequestId request = 0;
  int choice = 0;                         // 0 to n - 1
  std::vector<TokenScore> prompt_scores;  // of the next tokens of the prompt, in order
  std::optional<TokenScore> token;        // generated; log_probability and top only where they were asked for
  // The id that ended it; it is not part of the text.
  std::optional<TokenScore> end;
  FinishReason finish = FinishReason::kNone;
  Usage usage;          // so far, where a token came or it finished: a caller may end a text itself
  std::string message;  // kFailed: why
};

}  // namespace kvloom
