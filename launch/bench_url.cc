#include "launch/bench_url.h"

#include <fmt/ostream.h>

#include "kernels/error.h"
#include "launch/bench_arrivals.h"

namespace kvloom {

void bench_url(const ServerLoad& load, BenchForm form, std::ostream& out) {
  const ServerLoadResult result = measure_server(load);
  if (result.failed == load.load.requests) {
    fail("all {} requests failed, of {} tokens and {} new ones each; the first: {}", result.failed,
         load.load.shape.prompt_tokens, load.load.shape.new_tokens, result.first_failure);
  }
  if (form == BenchForm::kJson) {
    nlohmann::ordered_json json = {{"model", result.model},
                                   {"prompt_tokens", load.load.shape.prompt_tokens},
                                   {"new_tokens", load.load.shape.new_tokens},
                                   {"generated_tokens", result.tokens},
                                   {"failed", result.failed}};
    json.update(json_of(result.times, load.load));
    out << json.dump(2) << '\n';
  } else {
    fmt::print(out, "{}:{}: prompts of {} tokens, {} new ones each\n", load.server.host, load.server.port,
               load.load.shape.prompt_tokens, load.load.shape.new_tokens);
    print_arrivals(out, result.model, result.times, load.load);
  }
  if (result.failed > 0) {
    fail("{} of {} requests failed; the first: {}", result.failed, load.load.requests, result.first_failure);
  }
}

}  // namespace kvloom
