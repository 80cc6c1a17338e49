#include "launch/bench_decode.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "core/cost.h"
#include "kernels/error.h"
#include "launch/bench_support.h"

namespace kvloom {
namespace {

// The first step loads kernels and makes plans, the second one is recorded as a graph.
constexpr int kUntimedSteps = 2;

struct Ceilings {
  double bytes_per_second;
  double flops_per_second;
};

struct Measurement {
  std::string map;
  std::int64_t sequences = 0;
  int prefill_passes = 0;
  double prefill_seconds = std::numeric_limits<double>::infinity();  // the best of all repetitions
  double step_seconds = std::numeric_limits<double>::infinity();
  DecodeCost step;           // the mean of the timed ones
  double cache_bytes = 0;    // K and V of the prompts
  double prompt_tokens = 0;  // of all sequences

  double memory_seconds(const Ceilings& most) const { return step.bytes() / most.bytes_per_second; }
  double product_seconds(const Ceilings& most) const { return step.flops / most.flops_per_second; }
  double bound_seconds(const Ceilings& most) const { return std::max(memory_seconds(most), product_seconds(most)); }
  const char* bound_by(const Ceilings& most) const {
    return memory_seconds(most) >= product_seconds(most) ? "memory" : "products";
  }
  double decode_rate() const { return static_cast<double>(sequences) / step_seconds; }
  double prefill_rate() const { return prompt_tokens / prefill_seconds; }
};

DType dtype_of(const BenchDecodeRequest& request) {
  return request.precision == proto::TrainConfig::BF16 ? DType::kBF16 : DType::kF32;
}

ModelConfig config_of(const BenchDecodeRequest& request, const std::string& map) {
  proto::ModelConfig message = request.model;
  message.set_kv_map(map);
  message.set_context(static_cast<std::uint32_t>(request.prompt + kUntimedSteps + request.steps));
  return ModelConfig::from_proto(message);
}

DecodeCost mean_cost(const BenchDecodeRequest& request, const ModelConfig& config, std::int64_t sequences) {
  DecodeCost mean;
  for (int step = 0; step < request.steps; ++step) {
    const DecodeCost one = decode_cost(config, dtype_of(request), sequences, request.prompt + kUntimedSteps + step);
    mean.weight_bytes += one.weight_bytes / request.steps;
    mean.key_value_bytes += one.key_value_bytes / request.steps;
    mean.flops += one.flops / request.steps;
  }
  return mean;
}

Measurement measure(const BenchDecodeRequest& request, const Model& model, const std::string& map,
                    std::int64_t sequences) {
  const ModelConfig& config = model.config();
  Allocator& allocator = model.allocator();
  const std::int64_t prompt_tokens = sequences * request.prompt;
  Measurement result{.map = map, .sequences = sequences};
  result.step = mean_cost(request, config, sequences);
  result.cache_bytes = static_cast<double>(prompt_tokens * kv_bytes_per_token(config, model.dtype()));
  result.prompt_tokens = static_cast<double>(prompt_tokens);
  Decoder decoder(model, sequences, config.context, {.launch = request.launch});
  const auto prompts =
      Tensor::of<std::int32_t>(allocator, {prompt_tokens}, random_tokens(prompt_tokens, config.vocab, 1));
  const Tensor next = decoder.tokens();
  decoder.tokens().assign<std::int32_t>(random_tokens(sequences, config.vocab, 2));
  for (int repetition = 0; repetition < request.repetitions; ++repetition) {
    decoder.clear();
    const double prefill =
        seconds_of(allocator, [&] { decoder.prefill(prompts, {.passes = request.passes, .tolerance = 0}); });
    for (int step = 0; step < kUntimedSteps; ++step) decoder.step(next);
    const double steps = seconds_of(allocator, [&] {
      for (int step = 0; step < request.steps; ++step) decoder.step(next);
    });
    result.prefill_seconds = std::min(result.prefill_seconds, prefill);
    result.step_seconds = std::min(result.step_seconds, steps / request.steps);
  }
  result.prefill_passes = decoder.prefill_passes();
  return result;
}

nlohmann::ordered_json to_json(const Measurement& m, const Measurement& first, const Ceilings& most) {
  return {{"map", m.map},
          {"sequences", m.sequences},
          {"prefill_passes", m.prefill_passes},
          {"prefill_seconds", m.prefill_seconds},
          {"prefill_tokens_per_second", m.prefill_rate()},
          {"seconds_per_step", m.step_seconds},
          {"decode_tokens_per_second", m.decode_rate()},
          {"weight_bytes_per_step", m.step.weight_bytes},
          {"key_value_bytes_per_step", m.step.key_value_bytes},
          {"flops_per_step", m.step.flops},
          {"bound_by", m.bound_by(most)},
          {"ratio_to_bound", m.bound_seconds(most) / m.step_seconds},
          {"cache_bytes", m.cache_bytes},
          {"decode_relative", m.decode_rate() / first.decode_rate()},
          {"cache_relative", m.cache_bytes / first.cache_bytes}};
}

void print_head(const BenchDecodeRequest& request, const Ceilings& most, std::ostream& out) {
  fmt::print(out,
             "prompts of {} tokens, {} passes, then {} steps, {}; memory {:.1f} GB/s, matrix products {:.1f} GFLOP/s\n",
             request.prompt, request.passes.without_gradient + request.passes.with_gradient, request.steps,
             name_of(dtype_of(request)), most.bytes_per_second / 1e9, most.flops_per_second / 1e9);
  fmt::print(out, "{:<22} {:>5} {:>13} {:>12} {:>9} {:>9} {:>9} {:>10} {:>10} {:>11}\n", "map", "batch",
             "prefill tok/s", "decode tok/s", "ms/step", "of bound", "bound by", "tok/s rel.", "cache MiB",
             "cache rel.");
}

void print_row(const Measurement& m, const Measurement& first, const Ceilings& most, std::ostream& out) {
  fmt::print(out, "{:<22} {:>5} {:>13.0f} {:>12.1f} {:>9.3f} {:>9.2f} {:>9} {:>10.2f} {:>10.1f} {:>11.2f}\n", m.map,
             m.sequences, m.prefill_rate(), m.decode_rate(), m.step_seconds * 1e3,
             m.bound_seconds(most) / m.step_seconds, m.bound_by(most), m.decode_rate() / first.decode_rate(),
             m.cache_bytes / 0x1p20, m.cache_bytes / first.cache_bytes);
  out.flush();
}

Ceilings measured_ceilings(const BenchDecodeRequest& request, const ModelConfig& config) {
  constexpr std::int64_t kRows = 2048;
  const std::unique_ptr<Allocator> allocator = make_allocator(request.device, request.gpu);
  return {measured_memory_rate(*allocator), measured_product_rate(config, kRows, dtype_of(request), *allocator)};
}

}  // namespace

void bench_decode(const BenchDecodeRequest& request, std::ostream& out) {
  if (request.maps.empty() || request.batches.empty()) reject_input("bench decode: no map or no batch to measure");
  for (const std::string& map : request.maps)
    config_of(request, map);  // refuses what is wrong before anything is timed
  const Ceilings most = measured_ceilings(request, config_of(request, request.maps.front()));
  const bool is_text = request.form == BenchForm::kText;
  if (is_text) print_head(request, most, out);
  nlohmann::ordered_json runs = nlohmann::ordered_json::array();
  std::map<std::int64_t, Measurement> first;  // by batch
  for (const std::string& map : request.maps) {
    const std::unique_ptr<Allocator> allocator = make_allocator(request.device, request.gpu);
    Model model(config_of(request, map), dtype_of(request), *allocator);
    model.initialize(1);
    for (const std::int64_t sequences : request.batches) {
      const Measurement m = measure(request, model, map, sequences);
      const Measurement& base = first.try_emplace(sequences, m).first->second;
      if (is_text) print_row(m, base, most, out);
      runs.push_back(to_json(m, base, most));
    }
  }
  if (is_text) return;
  out << nlohmann::ordered_json{{"dtype", name_of(dtype_of(request))},
                                {"prompt_tokens", request.prompt},
                                {"steps", request.steps},
                                {"memory_bytes_per_second", most.bytes_per_second},
                                {"products_flops_per_second", most.flops_per_second},
                                {"runs", runs}}
             .dump(2)
      << '\n';
}

}  // namespace kvloom
