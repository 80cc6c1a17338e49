// Which stage holds which layers: boundaries that make the slowest stage as fast as can be (DESIGN 6).
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/schedule.h"
#include "parallel/stage_layout.h"
#include "parallel/step_cost.h"

namespace kvloom {

// A step of a layout, as it will run and what it is predicted to take.
struct PredictedStep {
  StageLayout layout;
  ChunkChain chain;
  ChainCosts costs;
  Schedule schedule;
  ScheduleTimes times;             // in seconds, each rank's busy time among them
  std::vector<RankMemory> memory;  // by rank
  std::int64_t searched = 0;       // computes of micro-batches that place_stages has predicted on its way here

  std::int64_t sent_bytes() const;  // in one micro-batch, by all ranks
  std::int64_t most_memory() const;
};

PredictedStep predict_step(const StepCounter& counter, const StageLayout& layout, const Speeds& speeds);

struct PlacementLimits {
  int ranks = 1;
  int stages_per_rank = 1;
  std::int64_t memory_bytes = 0;  // of a rank; 0: any
  // The search ends when so many computes of micro-batches have been predicted: after some ten seconds, on thirty and
  // more ranks. A count, not a clock: every rank must stop at the same place.
  std::int64_t most_searched = 400'000;
};

// Candidates come from a dynamic programme over the boundaries: the slowest stage's operations and received bytes as
// low as can be, and then, allowing a stage a little more, the fewest bytes between stages. They and the even layout
// are predicted by their schedules; the fastest that fits into the memory wins, of equals the one that sends least. A
// few hundred cuts are all predicted; of more, moves of runs of boundaries by one layer until none helps, or until a
// fixed amount of work is done. Never slower than even by the same prediction, where even fits. Throws InputError when
// no candidate fits, with what the best would need.
PredictedStep place_stages(const StepCounter& counter, const Speeds& speeds, const PlacementLimits& limits);

}  // namespace kvloom
