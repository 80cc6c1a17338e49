// `kvloom bench decode`: prompts and tokens per second, map by map and batch by batch, beside what the machine's memory
// and its matrix products allow.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "core/decoder.h"
#include "core/device_choice.h"
#include "launch/bench_support.h"
#include "proto/run.pb.h"

namespace kvloom {

struct BenchDecodeRequest {
  proto::ModelConfig model;  // its context is as long as the run needs
  proto::TrainConfig::Precision precision = proto::TrainConfig::F32;
  Device device;
  GpuSetting gpu;
  StepLaunch launch = StepLaunch::kGraph;
  int passes = 9;                     // of prefill, in iterated segments
  std::vector<std::string> maps;      // compared with the first
  std::vector<std::int64_t> batches;  // sequences that are decoded together
  std::int64_t prompt = 512;          // tokens of each, in the cache before the first step
  int steps = 32;                     // timed ones, behind a few that are not
  int repetitions = 3;                // of all this; the best counts
  BenchForm form = BenchForm::kText;
};

// Weights and tokens are random: what is timed does not depend on them. Sampling is left out. What cannot be measured
// (a batch too large for the memory) is named in its place, and the rest is measured; then throws Error.
void bench_decode(const BenchDecodeRequest& request, std::ostream& out);

}  // namespace kvloom
