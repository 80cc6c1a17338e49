// A batch's prefill and decode, beside the work that is counted for it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/cost.h"
#include "infer/load/load.h"
#include "parallel/communicator.h"

namespace kvloom {

// What the machine gives.
struct ServeCeilings {
  double memory;    // bytes per second
  double products;  // operations per second
};

// Of one batch.
struct ServeMeasurement {
  BatchResult best;  // of all repetitions, each figure by itself
  std::int64_t largest_batch = 0;
  double kv_bytes = 0;  // of the sequences when they have decoded
  DecodeCost step;      // the mean of the timed ones
  double prefill_flops = 0;
  std::int64_t prompt = 0;

  double step_seconds() const { return best.decode_seconds / static_cast<double>(best.decode_steps); }
  double decode_rate() const { return static_cast<double>(best.sequences) / step_seconds(); }
  double prefill_rate() const { return static_cast<double>(best.sequences * prompt) / best.prefill_seconds; }
  double bound_seconds(const ServeCeilings& most) const {
    return std::max(step.bytes() / most.memory, step.flops / most.products);
  }
  const char* bound_by(const ServeCeilings& most) const {
    return step.bytes() / most.memory >= step.flops / most.products ? "memory" : "products";
  }
  double prefill_share(const ServeCeilings& most) const { return prefill_flops / best.prefill_seconds / most.products; }
  double whole_rate(std::int64_t steps) const {
    return static_cast<double>(best.sequences * steps) / best.total_seconds;
  }
};

struct ServeLoad {
  std::int64_t prompt = 512;  // tokens of each sequence
  std::int64_t steps = 32;    // timed tokens of each
  int repetitions = 3;        // the best counts
  WholeRun whole = WholeRun::kNo;
  Communicator* leaders = nullptr;  // one rank of each replica, of several that are measured at one time
};

// Of `sequences` on all replicas together; 0: as many as the pages hold. Collective over the leaders. Throws as
// measure_batch, on every replica where it fails on one.
ServeMeasurement measure_serving(Engine& engine, const ServeLoad& load, std::int64_t sequences);

}  // namespace kvloom
