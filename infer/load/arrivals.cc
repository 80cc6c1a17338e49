#include "infer/load/arrivals.h"

#include <algorithm>
#include <cmath>

#include "kernels/random.h"

namespace kvloom {

std::vector<std::int32_t> random_prompt(std::int64_t tokens, std::int64_t vocab, std::uint64_t stream) {
  std::vector<std::int32_t> prompt(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    prompt[i] = static_cast<std::int32_t>(uniform(1, stream, i) * static_cast<double>(vocab));
  }
  return prompt;
}

std::vector<double> arrival_times(const ArrivalLoad& load) {
  std::vector<double> times;
  double next = 0;
  for (std::int64_t sent = 0; sent < load.requests; ++sent) {
    times.push_back(next);
    next -= std::log1p(-uniform(load.seed, stream_id("arrivals"), static_cast<std::uint64_t>(sent))) / load.per_second;
  }
  return times;
}

std::vector<std::int32_t> arrival_prompt(const ArrivalLoad& load, std::int64_t request, std::int64_t vocab) {
  return random_prompt(load.shape.prompt_tokens, vocab, load.seed * 1000003 + static_cast<std::uint64_t>(request));
}

Percentiles percentiles_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  const auto at = [&](double part) {
    const auto rank = static_cast<std::size_t>(std::ceil(part * static_cast<double>(values.size())));
    return values[std::clamp<std::size_t>(rank, 1, values.size()) - 1];
  };
  return {.p50 = at(0.5), .p90 = at(0.9), .p99 = at(0.99)};
}

void ArrivalTimes::add_tokens(TextTimes& text, std::int64_t tokens, double now) {
  if (text.last_token < 0) {
    first_.push_back(now - text.arrival);
  } else {
    between_.push_back(now - text.last_token);
  }
  text.last_token = now;
  tokens_ += tokens;
}

void ArrivalTimes::add_end(const TextTimes& text, double now) { whole_.push_back(now - text.arrival); }

ArrivalResult ArrivalTimes::result(double seconds) const {
  return {.seconds = seconds,
          .tokens_per_second = static_cast<double>(tokens_) / seconds,
          .first_token = percentiles_of(first_),
          .between_tokens = percentiles_of(between_),
          .whole = percentiles_of(whole_)};
}

}  // namespace kvloom
