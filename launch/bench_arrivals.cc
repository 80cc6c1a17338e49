#include "launch/bench_arrivals.h"

#include <fmt/ostream.h>

namespace kvloom {
namespace {

nlohmann::ordered_json json_of(const Percentiles& percentiles) {
  return {{"p50", percentiles.p50}, {"p90", percentiles.p90}, {"p99", percentiles.p99}};
}

}  // namespace

nlohmann::ordered_json json_of(const ArrivalResult& result, const ArrivalLoad& load) {
  return {{"arrivals_per_second", load.per_second},
          {"requests", load.requests},
          {"seconds", result.seconds},
          {"tokens_per_second", result.tokens_per_second},
          {"first_token_seconds", json_of(result.first_token)},
          {"between_tokens_seconds", json_of(result.between_tokens)},
          {"whole_seconds", json_of(result.whole)},
          {"most_running", result.most_running}};
}

void print_arrivals(std::ostream& out, const std::string& name, const ArrivalResult& result, const ArrivalLoad& load) {
  const auto line = [&](const char* what, const Percentiles& p) {
    fmt::print(out, "    {:<44} {:>9.1f} {:>9.1f} {:>9.1f}\n", what, p.p50 * 1e3, p.p90 * 1e3, p.p99 * 1e3);
  };
  fmt::print(out, "{:<18} {} requests, {} a second at random: {:.1f} tokens/s, at most {} running; ms for\n", name,
             load.requests, load.per_second, result.tokens_per_second, result.most_running);
  fmt::print(out, "    {:<44} {:>9} {:>9} {:>9}\n", "", "50%", "90%", "99%");
  line("arrival to first token", result.first_token);
  line("between two tokens of a text", result.between_tokens);
  line("arrival to last token", result.whole);
  out.flush();
}

}  // namespace kvloom
