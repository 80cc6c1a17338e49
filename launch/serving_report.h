// A served model on a mesh as `kvloom plan --serve` shows it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/serving_plan.h"

namespace kvloom {

struct ServingReport {
  ServingShape shape;
  ServingSpeeds speeds;
  std::string placement;  // how the boundaries came about: "auto", "even", "given"
  std::vector<int> boundaries;
  std::int64_t memory_bytes = 0;  // of a rank; 0: not known
  std::int64_t kv_bytes = 0;      // of a rank, for pages
  std::vector<std::int64_t> batches;
  std::int64_t prompt = 0;
  double passes_per_token = 1;  // assumed of iterated segments
};

// For people, and for programs: bytes and seconds unrounded.
std::string serving_text(const ServingReport& report);
std::string serving_json(const ServingReport& report);

}  // namespace kvloom
