#include "launch/bench_decode.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "core/cost.h"
#include "core/kv_pages.h"
#include "kernels/error.h"
#include "launch/bench_support.h"
#include "launch/memory_advice.h"

namespace kvloom {
namespace {

// The first step loads kernels and makes plans, the second one is recorded as a graph.
constexpr int kUntimedSteps = 2;

struct Ceilings {
  MemoryRates memory;  // bytes per second
  double products;     // operations per second
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

  double memory_seconds(const Ceilings& most) const { return step.bytes() / most.memory.best; }
  double product_seconds(const Ceilings& most) const { return step.flops / most.products; }
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

Measurement measure(const BenchDecodeRequest& request, const Model& model, const std::string& map,
                    std::int64_t sequences) {
  const ModelConfig& config = model.config();
  Allocator& allocator = model.allocator();
  const std::int64_t prompt_tokens = sequences * request.prompt;
  Measurement result{.map = map, .sequences = sequences};
  result.step = decode_cost(config, model.dtype(), sequences, request.prompt + kUntimedSteps, request.steps);
  result.prompt_tokens = static_cast<double>(prompt_tokens);
  result.cache_bytes = static_cast<double>(sequences * kv_bytes(config, kv_format_of(model.dtype()), request.prompt));
  // One bound, and so one graph, for all steps.
  Decoder decoder(model, sequences, config.context, {.launch = request.launch, .first_bound = config.context});
  const auto prompts =
      Tensor::of<std::int32_t>(allocator, {prompt_tokens}, random_tokens(prompt_tokens, config.vocab, 1));
  Tensor next = decoder.tokens();
  next.assign<std::int32_t>(random_tokens(sequences, config.vocab, 2));
  const PrefillOptions prefilling{.passes = {.without_gradient = request.passes, .with_gradient = 0}, .tolerance = 0};
  for (int repetition = 0; repetition < request.repetitions; ++repetition) {
    decoder.clear();
    const double prefill = seconds_of(allocator, [&] { decoder.prefill(prompts, prefilling); });
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
  fmt::print(out, "prompts of {} tokens, then {} steps, {}; memory {:.1f} GB/s, matrix products {:.1f} GFLOP/s\n",
             request.prompt, request.steps, name_of(dtype_of(request)), most.memory.best / 1e9, most.products / 1e9);
  fmt::print(out, "{:<22} {:>5} {:>6} {:>13} {:>12} {:>9} {:>8} {:>8} {:>10} {:>9} {:>10}\n", "map", "batch", "passes",
             "prefill tok/s", "decode tok/s", "ms/step", "of bound", "bound by", "tok/s rel.", "cache MiB",
             "cache rel.");
}

void print_row(const Measurement& m, const Measurement& first, const Ceilings& most, std::ostream& out) {
  fmt::print(out, "{:<22} {:>5} {:>6} {:>13.0f} {:>12.1f} {:>9.3f} {:>8.2f} {:>8} {:>10.2f} {:>9.1f} {:>10.2f}\n",
             m.map, m.sequences, m.prefill_passes, m.prefill_rate(), m.decode_rate(), m.step_seconds * 1e3,
             m.bound_seconds(most) / m.step_seconds, m.bound_by(most), m.decode_rate() / first.decode_rate(),
             m.cache_bytes / 0x1p20, m.cache_bytes / first.cache_bytes);
  out.flush();
}

Ceilings measured_ceilings(const BenchDecodeRequest& request, const ModelConfig& config) {
  constexpr std::int64_t kRows = 4096;
  const std::unique_ptr<Allocator> allocator = make_allocator(request.device, request.gpu);
  return {measured_memory_rates(*allocator), measured_product_rate(config, kRows, dtype_of(request), *allocator)};
}

// What has been measured so far, as it is printed.
class Results {
 public:
  Results(const BenchDecodeRequest& request, const Ceilings& most, std::ostream& out)
      : request_(request), most_(most), out_(out) {
    if (is_text()) print_head(request, most, out);
  }

  void add(const Measurement& m) {
    const Measurement& first = first_.try_emplace(m.sequences, m).first->second;
    if (is_text()) print_row(m, first, most_, out_);
    runs_.push_back(to_json(m, first, most_));
  }
  void add_failure(const std::string& map, std::int64_t sequences, const std::string& reason) {
    ++failures_;
    if (is_text()) fmt::print(out_, "{:<22} {:>5} {}\n", map, sequences, reason);
    out_.flush();
    runs_.push_back({{"map", map}, {"sequences", sequences}, {"error", reason}});
  }
  void finish() const {
    if (!is_text()) {
      out_ << nlohmann::ordered_json{{"dtype", name_of(dtype_of(request_))},
                                     {"prompt_tokens", request_.prompt},
                                     {"steps", request_.steps},
                                     {"copy_bytes_per_second", most_.memory.copy},
                                     {"memory_bytes_per_second", most_.memory.best},
                                     {"products_flops_per_second", most_.products},
                                     {"runs", runs_}}
                  .dump(2)
           << '\n';
    }
    if (failures_ > 0) fail("bench decode: {} of {} could not be measured", failures_, runs_.size());
  }

 private:
  bool is_text() const { return request_.form == BenchForm::kText; }

  const BenchDecodeRequest& request_;
  const Ceilings& most_;
  std::ostream& out_;
  std::map<std::int64_t, Measurement> first_;  // by batch
  nlohmann::ordered_json runs_ = nlohmann::ordered_json::array();
  int failures_ = 0;
};

}  // namespace

void bench_decode(const BenchDecodeRequest& request, std::ostream& out) {
  if (request.maps.empty() || request.batches.empty()) reject_input("no map or no batch to measure");
  for (const std::string& map : request.maps)
    config_of(request, map);  // refuses what is wrong before anything is timed
  const Ceilings most = measured_ceilings(request, config_of(request, request.maps.front()));
  Results results(request, most, out);
  for (const std::string& map : request.maps) {
    const std::unique_ptr<Allocator> allocator = make_allocator(request.device, request.gpu);
    Model model(config_of(request, map), dtype_of(request), *allocator);
    model.initialize(1);
    for (const std::int64_t sequences : request.batches) {
      try {
        with_memory_advice(kBenchDecodeMemory, [&] { results.add(measure(request, model, map, sequences)); });
      } catch (const Error& error) {
        results.add_failure(map, sequences, error.what());
      }
    }
  }
  results.finish();
}

}  // namespace kvloom
