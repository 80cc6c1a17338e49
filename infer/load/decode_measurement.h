// How long prompts and steps of the sequential decoder take, beside what the machine's memory and its matrix products
// allow.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "core/cost.h"
#include "core/decoder.h"
#include "core/device_choice.h"
#include "core/measured_rates.h"
#include "proto/run.pb.h"

namespace kvloom {

struct DecodeMeasurementRequest {
  proto::ModelConfig model;  // without map; its context is as long as the run needs
  proto::TrainConfig::Precision precision = proto::TrainConfig::F32;
  Device device;
  GpuSetting gpu;
  StepLaunch launch = StepLaunch::kGraph;
  int passes = 9;             // of prefill, in iterated segments
  std::int64_t prompt = 512;  // tokens of each, in the cache before the first step
  int steps = 32;             // timed ones, behind a few that are not
  int repetitions = 3;        // of all this; the best counts
};

struct DecodeCeilings {
  MemoryRates memory;  // bytes per second
  double products;     // operations per second
};

struct DecodeMeasurement {
  std::string map;
  std::int64_t sequences = 0;
  int prefill_passes = 0;
  double prefill_seconds = std::numeric_limits<double>::infinity();  // the best of all repetitions
  double step_seconds = std::numeric_limits<double>::infinity();
  DecodeCost step;           // the mean of the timed ones
  double cache_bytes = 0;    // K and V of the prompts
  double prompt_tokens = 0;  // of all sequences

  double memory_seconds(const DecodeCeilings& most) const { return step.bytes() / most.memory.best; }
  double product_seconds(const DecodeCeilings& most) const { return step.flops / most.products; }
  double bound_seconds(const DecodeCeilings& most) const {
    return std::max(memory_seconds(most), product_seconds(most));
  }
  const char* bound_by(const DecodeCeilings& most) const {
    return memory_seconds(most) >= product_seconds(most) ? "memory" : "products";
  }
  double decode_rate() const { return static_cast<double>(sequences) / step_seconds; }
  double prefill_rate() const { return prompt_tokens / prefill_seconds; }
};

// Throws InputError for a map that the model cannot have.
ModelConfig config_of(const DecodeMeasurementRequest& request, const std::string& map);
DType dtype_of(const DecodeMeasurementRequest& request);

// Of `sequences` together, by a model of config_of's. Tokens are random: what is timed does not depend on them.
DecodeMeasurement measure_decode(const DecodeMeasurementRequest& request, const Model& model, const std::string& map,
                                 std::int64_t sequences);

DecodeCeilings measured_decode_ceilings(const DecodeMeasurementRequest& request, const ModelConfig& config);

}  // namespace kvloom
