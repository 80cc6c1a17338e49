// Requests that arrive at random moments, whether or not earlier ones have been served (open loop), and what is kept
// of how long they take. Times are seconds of the steady clock, from the beginning of the load.
#pragma once

#include <cstdint>
#include <vector>

namespace kvloom {

struct LoadShape {
  std::int64_t prompt_tokens = 512;  // of each sequence
  std::int64_t new_tokens = 32;      // of each
};

struct ArrivalLoad {
  double per_second = 1;  // Poisson arrivals
  std::int64_t requests = 32;
  LoadShape shape;
  std::uint64_t seed = 1;  // of moments and prompts
};

// Ids below `vocab`, others for every stream.
std::vector<std::int32_t> random_prompt(std::int64_t tokens, std::int64_t vocab, std::uint64_t stream);

// Of each request, in order; the first arrives at 0. A pure function of the load.
std::vector<double> arrival_times(const ArrivalLoad& load);
std::vector<std::int32_t> arrival_prompt(const ArrivalLoad& load, std::int64_t request, std::int64_t vocab);

// Seconds below which lie so many per cent of the values; of none 0.
struct Percentiles {
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
};
Percentiles percentiles_of(std::vector<double> values);

struct ArrivalResult {
  double seconds = 0;            // from the first arrival to the last token
  double tokens_per_second = 0;  // generated
  Percentiles first_token;       // from arrival to the first token
  Percentiles between_tokens;    // of one text
  Percentiles whole;             // from arrival to the last token
  double passes_per_token = 1;   // of prompts, where it is known
  std::int64_t most_running = 0;
};

// One text on its way.
struct TextTimes {
  double arrival = 0;
  double last_token = -1;  // < 0: none has come
};

class ArrivalTimes {
 public:
  // `now`: when a token of the text, or several at once, came; when its end came.
  void add_tokens(TextTimes& text, std::int64_t tokens, double now);
  void add_end(const TextTimes& text, double now);
  // All but passes_per_token and most_running.
  ArrivalResult result(double seconds) const;

 private:
  std::vector<double> first_;
  std::vector<double> between_;
  std::vector<double> whole_;
  std::int64_t tokens_ = 0;
};

}  // namespace kvloom
