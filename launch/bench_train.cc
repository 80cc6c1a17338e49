#include "launch/bench_train.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/cost.h"
#include "core/device_choice.h"
#include "core/training_pass.h"
#include "kernels/error.h"
#include "launch/memory_advice.h"
#include "train/optimizer.h"

namespace kvloom {
namespace {

struct Measurement {
  std::string map;
  double seconds = 0;  // the best step
  double flops = 0;    // counted
  LayerRunTally tally;
  std::size_t peak_bytes = 0;
  double loss = 0;
};

ModelConfig config_of(const BenchTrainRequest& request, const std::string& map) {
  proto::ModelConfig message = request.model;
  message.set_kv_map(map);
  return ModelConfig::from_proto(message);
}

Measurement measure(const BenchTrainRequest& request, const std::string& map, DType dtype) {
  const ModelConfig config = config_of(request, map);
  const std::unique_ptr<Allocator> owned = make_allocator(request.device, request.gpu);
  Allocator& allocator = *owned;
  Model model(config, dtype, allocator);
  model.initialize(1);
  proto::RunConfig run;
  *run.mutable_model() = config.to_proto();
  AdamWOptimizer optimizer(model, {0, model.layout().count()}, parse_run_config("bench", to_text(run), {}).train());
  ModelGradients gradients(model);
  TrainingPass pass(model, request.passes, config.context, Recompute::kNone);
  const std::int64_t count = request.micro_batch * config.context;
  const TokenBatch batch = make_token_batch(model, random_tokens(count, config.vocab, 1),
                                            random_tokens(count, config.vocab, 2), request.micro_batch);
  Measurement result{.map = map};
  for (int step = 0; step <= request.steps; ++step) {
    const double seconds = seconds_of(allocator, [&] {
      gradients.flat.fill_zero();
      result.loss = pass.run(batch, 1.0f / static_cast<float>(count), gradients) / static_cast<double>(count);
      optimizer.step(gradients.flat, 1e-4, clip_scale(gradient_norm(gradients.flat), 1.0));
    });
    if (step > 0) result.seconds = result.seconds == 0 ? seconds : std::min(result.seconds, seconds);
  }
  result.tally = pass.tally();
  result.flops =
      static_cast<double>(request.micro_batch) * (plan_flops(config, pass.plan(), config.context).total() +
                                                  head_flops(config, config.context, PlanMode::kTrain).total());
  result.peak_bytes = allocator.statistics().peak_bytes;
  return result;
}

nlohmann::ordered_json to_json(const Measurement& m, const Measurement& base, double rate) {
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

}  // namespace

void bench_train(const BenchTrainRequest& request, std::ostream& out) {
  const DType dtype = request.precision == proto::TrainConfig::BF16 ? DType::kBF16 : DType::kF32;
  if (request.maps.empty()) reject_input("no map to measure");
  // What is wrong with a map is refused before anything is timed.
  std::vector<ModelConfig> configs;
  for (const std::string& map : request.maps) configs.push_back(config_of(request, map));
  const ModelConfig& config = configs.front();
  const std::unique_ptr<Allocator> owned = make_allocator(request.device, request.gpu);
  Allocator& allocator = *owned;
  const double rate = measured_product_rate(config, request.micro_batch * config.context, dtype, allocator);
  if (request.form == BenchForm::kText) {
    fmt::print(out, "{} x {} tokens, {}, m = {}, b = {}; matrix products alone: {:.1f} GFLOP/s\n", request.micro_batch,
               config.context, name_of(dtype), request.passes.without_gradient, request.passes.with_gradient,
               rate / 1e9);
    fmt::print(out, "{:<22} {:>9} {:>9} {:>9} {:>9} {:>10} {:>11} {:>9}\n", "map", "s/step", "tokens/s", "GFLOP/s",
               "of those", "time/first", "counted", "peak GiB");
  }
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  Measurement base;
  int failures = 0;
  std::string reason;
  for (const std::string& map : request.maps) {
    Measurement m;
    try {
      with_memory_advice(kBenchTrainMemory, [&] { m = measure(request, map, dtype); });
    } catch (const Error& error) {
      if (failures++ == 0) reason = error.what();
      all.push_back({{"map", map}, {"error", error.what()}});
      if (request.form == BenchForm::kText) {
        fmt::print(out, "{:<22} {}\n", map, error.what());
        out.flush();
      }
      continue;
    }
    if (base.map.empty()) {
      base = m;
      if (m.map != request.maps.front() && request.form == BenchForm::kText) {
        fmt::print(out, "(time/first and counted are relative to {} from here on)\n", m.map);
      }
    }
    all.push_back(to_json(m, base, rate));
    if (request.form == BenchForm::kJson) continue;
    fmt::print(out, "{:<22} {:>9.3f} {:>9.0f} {:>9.1f} {:>9.2f} {:>10.3f} {:>11.3f} {:>9.2f}\n", m.map, m.seconds,
               static_cast<double>(request.micro_batch * config.context) / m.seconds, m.flops / m.seconds / 1e9,
               m.flops / m.seconds / rate, m.seconds / base.seconds, m.flops / base.flops,
               static_cast<double>(m.peak_bytes) / 0x1p30);
    out.flush();
  }
  if (request.form == BenchForm::kJson) {
    out << nlohmann::ordered_json{{"products_flops_per_second", rate}, {"dtype", name_of(dtype)}, {"maps", all}}.dump(2)
        << '\n';
  }
  if (failures > 0) {
    fail("{} of {} maps could not be measured: {}", failures, request.maps.size(), reason);
  }
}

}  // namespace kvloom
