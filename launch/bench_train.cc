#include "launch/bench_train.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kernels/error.h"
#include "launch/memory_advice.h"

namespace kvloom {
namespace {

nlohmann::ordered_json to_json(const StepMeasurement& m, const StepMeasurement& base, double rate) {
  return {{"map", m.map},
          {"seconds_per_step", m.seconds},
          {"flops_per_second", m.flops / m.seconds},
          {"ratio_to_products", m.flops / m.seconds / rate},
          {"time_relative", m.seconds / base.seconds},
          {"predicted_relative", m.flops / base.flops},
          {"layer_runs", m.tally.blocks},
          {"layer_runs_with_gradient", m.tally.blocks_with_gradient},
          {"key_value_only_runs", m.tally.key_value_only},
          {"peak_bytes", m.peak_bytes}};
}

// What has been measured so far, as it is printed. Times are relative to the first map that could be measured.
class Results {
 public:
  Results(const BenchTrainRequest& request, const ModelConfig& config, double rate, std::ostream& out)
      : request_(request), tokens_(request.step.micro_batch * config.context), rate_(rate), out_(out) {
    if (!is_text()) return;
    fmt::print(out_, "{} x {} tokens, {}, m = {}, b = {}; matrix products alone: {:.1f} GFLOP/s\n",
               request.step.micro_batch, config.context, name_of(dtype_of(request.step)),
               request.step.passes.without_gradient, request.step.passes.with_gradient, rate / 1e9);
    fmt::print(out_, "{:<22} {:>9} {:>9} {:>9} {:>9} {:>10} {:>11} {:>9}\n", "map", "s/step", "tokens/s", "GFLOP/s",
               "of those", "time/first", "counted", "peak GiB");
  }

  void add(const StepMeasurement& m) {
    if (base_.map.empty()) {
      base_ = m;
      if (is_text() && failures_ > 0) {
        fmt::print(out_, "(time/first and counted are relative to {} from here on)\n", m.map);
      }
    }
    maps_.push_back(to_json(m, base_, rate_));
    if (!is_text()) return;
    fmt::print(out_, "{:<22} {:>9.3f} {:>9.0f} {:>9.1f} {:>9.2f} {:>10.3f} {:>11.3f} {:>9.2f}\n", m.map, m.seconds,
               static_cast<double>(tokens_) / m.seconds, m.flops / m.seconds / 1e9, m.flops / m.seconds / rate_,
               m.seconds / base_.seconds, m.flops / base_.flops, static_cast<double>(m.peak_bytes) / 0x1p30);
    out_.flush();
  }
  void add_failure(const std::string& map, const std::string& reason) {
    if (failures_++ == 0) first_reason_ = reason;
    maps_.push_back({{"map", map}, {"error", reason}});
    if (!is_text()) return;
    fmt::print(out_, "{:<22} {}\n", map, reason);
    out_.flush();
  }
  void finish() const {
    if (!is_text()) {
      out_ << nlohmann::ordered_json{{"products_flops_per_second", rate_},
                                     {"dtype", name_of(dtype_of(request_.step))},
                                     {"maps", maps_}}
                  .dump(2)
           << '\n';
    }
    if (failures_ > 0) fail("{} of {} maps could not be measured: {}", failures_, maps_.size(), first_reason_);
  }

 private:
  bool is_text() const { return request_.form == BenchForm::kText; }

  const BenchTrainRequest& request_;
  std::int64_t tokens_;  // of a step
  double rate_;
  std::ostream& out_;
  StepMeasurement base_;
  nlohmann::ordered_json maps_ = nlohmann::ordered_json::array();
  int failures_ = 0;
  std::string first_reason_;
};

}  // namespace

void bench_train(const BenchTrainRequest& request, std::ostream& out) {
  if (request.maps.empty()) reject_input("no map to measure");
  // What is wrong with a map is refused before anything is timed.
  for (const std::string& map : request.maps) config_of(request.step, map);
  const ModelConfig config = config_of(request.step, request.maps.front());
  Results results(request, config, measured_step_rate(request.step, config), out);
  for (const std::string& map : request.maps) {
    try {
      with_memory_advice(kBenchTrainMemory, [&] { results.add(measure_step(request.step, map)); });
    } catch (const Error& error) {
      results.add_failure(map, error.what());
    }
  }
  results.finish();
}

}  // namespace kvloom
