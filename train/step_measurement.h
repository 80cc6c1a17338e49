// How long a training step takes on one rank, beside the work that is counted for it.
#pragma once

#include <cstdint>
#include <string>

#include "core/device.h"
#include "core/device_choice.h"
#include "core/iteration_plan.h"
#include "core/plan_run.h"
#include "proto/run.pb.h"

namespace kvloom {

struct StepMeasurementRequest {
  proto::ModelConfig model;  // without map
  proto::TrainConfig::Precision precision = proto::TrainConfig::F32;
  Device device;
  GpuSetting gpu;
  Passes passes;
  std::int64_t micro_batch = 4;
  int steps = 2;  // timed, after one that is not; the best counts
};

struct StepMeasurement {
  std::string map;
  double seconds = 0;
  double flops = 0;  // counted
  LayerRunTally tally;
  std::size_t peak_bytes = 0;
};

// Throws InputError for a map that the model cannot have.
ModelConfig config_of(const StepMeasurementRequest& request, const std::string& map);
DType dtype_of(const StepMeasurementRequest& request);

// Steps of random weights and tokens. Throws InputError as config_of.
StepMeasurement measure_step(const StepMeasurementRequest& request, const std::string& map);

// Of the matrix products of such a step alone, in operations per second.
double measured_step_rate(const StepMeasurementRequest& request, const ModelConfig& config);

}  // namespace kvloom
