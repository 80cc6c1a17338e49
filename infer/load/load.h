// Loads that an engine is measured under: batches that begin and decode together, single prompts, and arrivals at
// random moments. Token ids are random, so no prompt is found in the prefix cache. Times are seconds of the steady
// clock.
#pragma once

#include <cstdint>
#include <vector>

#include "infer/engine/engine.h"

namespace kvloom {

struct LoadShape {
  std::int64_t prompt_tokens = 512;  // of each sequence
  std::int64_t new_tokens = 32;      // of each
};

// Ids below `vocab`, others for every stream.
std::vector<std::int32_t> random_prompt(std::int64_t tokens, std::int64_t vocab, std::uint64_t stream);

struct BatchResult {
  std::int64_t sequences = 0;
  double prefill_seconds = 0;     // of all prompts together, each with its first token
  double decode_seconds = 0;      // of the timed steps
  std::int64_t decode_steps = 0;  // each gives every sequence one token
  double passes_per_token = 1;
  double total_seconds = 0;  // from the first arrival until every sequence has its new_tokens
  std::int64_t preemptions = 0;
};

// `sequences` prompts that arrive together: first the prompts alone, then again with shape.new_tokens timed steps in
// which all of them decode, then `whole` of them once more to their end, if that is asked for. The engine is idle
// before and after. Throws InputError when a sequence does not fit, Error when they do not fit together.
enum class WholeRun : std::uint8_t { kNo, kYes };
BatchResult measure_batch(Engine& engine, std::int64_t sequences, const LoadShape& shape, WholeRun whole);

struct FirstTokenResult {
  std::int64_t prompt_tokens = 0;
  double seconds = 0;  // from arrival to the first token, nothing else under way
  double passes_per_token = 1;
};
FirstTokenResult measure_first_token(Engine& engine, std::int64_t prompt_tokens);

// Seconds below which lie so many per cent of the values; of none 0.
struct Percentiles {
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
};
Percentiles percentiles_of(std::vector<double> values);

struct ArrivalLoad {
  double per_second = 1;  // Poisson arrivals
  std::int64_t requests = 32;
  LoadShape shape;
  std::uint64_t seed = 1;
};
struct ArrivalResult {
  double seconds = 0;            // from the first arrival to the last token
  double tokens_per_second = 0;  // generated
  Percentiles first_token;       // from arrival to the first token
  Percentiles between_tokens;    // of one text
  Percentiles whole;             // from arrival to the last token
  double passes_per_token = 1;
  std::int64_t most_running = 0;
};
// Requests arrive whether or not earlier ones have been served (open loop).
ArrivalResult measure_arrivals(Engine& engine, const ArrivalLoad& load);

}  // namespace kvloom
