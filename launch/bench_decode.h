// `kvloom bench decode`: prompts and tokens per second, map by map and batch by batch, beside what the machine's memory
// and its matrix products allow.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "infer/load/decode_measurement.h"
#include "launch/bench_form.h"

namespace kvloom {

struct BenchDecodeRequest {
  DecodeMeasurementRequest decode;
  std::vector<std::string> maps;      // compared with the first
  std::vector<std::int64_t> batches;  // sequences that are decoded together
  BenchForm form = BenchForm::kText;
};

// Weights and tokens are random: what is timed does not depend on them. Sampling is left out. What cannot be measured
// (a batch too large for the memory) is named in its place, and the rest is measured; then throws Error.
void bench_decode(const BenchDecodeRequest& request, std::ostream& out);

}  // namespace kvloom
