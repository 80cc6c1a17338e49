#include "launch/bench_decode.h"

#include <fmt/ostream.h>

#include <map>
#include <nlohmann/json.hpp>

#include "kernels/error.h"
#include "launch/memory_advice.h"

namespace kvloom {
namespace {

nlohmann::ordered_json to_json(const DecodeMeasurement& m, const DecodeMeasurement& first, const DecodeCeilings& most) {
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

void print_head(const BenchDecodeRequest& request, const DecodeCeilings& most, std::ostream& out) {
  fmt::print(out, "prompts of {} tokens, then {} steps, {}; memory {:.1f} GB/s, matrix products {:.1f} GFLOP/s\n",
             request.decode.prompt, request.decode.steps, name_of(dtype_of(request.decode)), most.memory.best / 1e9,
             most.products / 1e9);
  fmt::print(out, "{:<22} {:>5} {:>6} {:>13} {:>12} {:>9} {:>8} {:>8} {:>10} {:>9} {:>10}\n", "map", "batch", "passes",
             "prefill tok/s", "decode tok/s", "ms/step", "of bound", "bound by", "tok/s rel.", "cache MiB",
             "cache rel.");
}

void print_row(const DecodeMeasurement& m, const DecodeMeasurement& first, const DecodeCeilings& most,
               std::ostream& out) {
  fmt::print(out, "{:<22} {:>5} {:>6} {:>13.0f} {:>12.1f} {:>9.3f} {:>8.2f} {:>8} {:>10.2f} {:>9.1f} {:>10.2f}\n",
             m.map, m.sequences, m.prefill_passes, m.prefill_rate(), m.decode_rate(), m.step_seconds * 1e3,
             m.bound_seconds(most) / m.step_seconds, m.bound_by(most), m.decode_rate() / first.decode_rate(),
             m.cache_bytes / 0x1p20, m.cache_bytes / first.cache_bytes);
  out.flush();
}

// What has been measured so far, as it is printed.
class Results {
 public:
  Results(const BenchDecodeRequest& request, const DecodeCeilings& most, std::ostream& out)
      : request_(request), most_(most), out_(out) {
    if (is_text()) print_head(request, most, out);
  }

  void add(const DecodeMeasurement& m) {
    const DecodeMeasurement& first = first_.try_emplace(m.sequences, m).first->second;
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
      out_ << nlohmann::ordered_json{{"dtype", name_of(dtype_of(request_.decode))},
                                     {"prompt_tokens", request_.decode.prompt},
                                     {"steps", request_.decode.steps},
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
  const DecodeCeilings& most_;
  std::ostream& out_;
  std::map<std::int64_t, DecodeMeasurement> first_;  // by batch
  nlohmann::ordered_json runs_ = nlohmann::ordered_json::array();
  int failures_ = 0;
};

}  // namespace

void bench_decode(const BenchDecodeRequest& request, std::ostream& out) {
  if (request.maps.empty() || request.batches.empty()) reject_input("no map or no batch to measure");
  for (const std::string& map : request.maps)
    config_of(request.decode, map);  // refuses what is wrong before anything is timed
  const DecodeCeilings most = measured_decode_ceilings(request.decode, config_of(request.decode, request.maps.front()));
  Results results(request, most, out);
  for (const std::string& map : request.maps) {
    const std::unique_ptr<Allocator> allocator = make_allocator(request.decode.device, request.decode.gpu);
    Model model(config_of(request.decode, map), dtype_of(request.decode), *allocator);
    model.initialize(1);
    for (const std::int64_t sequences : request.batches) {
      try {
        with_memory_advice(kBenchDecodeMemory,
                           [&] { results.add(measure_decode(request.decode, model, map, sequences)); });
      } catch (const Error& error) {
        results.add_failure(map, sequences, error.what());
      }
    }
  }
  results.finish();
}

}  // namespace kvloom
