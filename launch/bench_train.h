// `kvloom bench train`: how fast a training step is, beside the rate of the matrix products alone in the same run.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/device_choice.h"
#include "core/iteration_plan.h"
#include "launch/bench_support.h"
#include "proto/run.pb.h"

namespace kvloom {

struct BenchTrainRequest {
  proto::ModelConfig model;
  proto::TrainConfig::Precision precision = proto::TrainConfig::F32;
  Device device;
  GpuSetting gpu;
  Passes passes;
  std::vector<std::string> maps;  // compared with the first
  std::int64_t micro_batch = 4;
  int steps = 2;  // timed, after one that is not
  BenchForm form = BenchForm::kText;
};

// A map that cannot be measured has its reason in its row; the others are measured all the same, then Error is thrown.
void bench_train(const BenchTrainRequest& request, std::ostream& out);

}  // namespace kvloom
