// Loads that an engine is measured under: batches that begin and decode together, single prompts, and arrivals at
// random moments. Token ids are random, so no prompt is found in the prefix cache. Times are seconds of the steady
// clock.
#pragma once

#include <cstdint>
#include <vector>

#include "infer/engine/engine.h"
#include "infer/load/arrivals.h"

namespace kvloom {

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
// before and after. Throws InputError when a sequence does not fit, Error when they do not fit together or the context
// ends them before their steps.
enum class WholeRun : std::uint8_t { kNo, kYes };
BatchResult measure_batch(Engine& engine, std::int64_t sequences, const LoadShape& shape, WholeRun whole);

struct FirstTokenResult {
  std::int64_t prompt_tokens = 0;
  double seconds = 0;  // from arrival to the first token, nothing else under way
  double passes_per_token = 1;
};
FirstTokenResult measure_first_token(Engine& engine, std::int64_t prompt_tokens);

// Requests arrive whether or not earlier ones have been served (open loop).
ArrivalResult measure_arrivals(Engine& engine, const ArrivalLoad& load);

}  // namespace kvloom
