// What a predicted step says of its stages, ranks and messages.
#pragma once

#include <set>
#include <vector>

#include "parallel/placement.h"
#include "parallel/step_cost.h"

namespace kvloom {

struct StageSummary {
  int rank = 0;
  int first_layer = 0;
  int last_layer = 0;
  std::vector<int> owned;    // KV sources
  std::set<int> received;    // KV sources of other ranks that its layers read
  double compute_share = 0;  // of all stages' computing
};

std::vector<StageSummary> stages_of(const StepShape& shape, const PredictedStep& step);

// Messages from one rank to another, for each micro-batch.
struct RankLink {
  int from;
  int to;
  LinkBytes bytes;
};

std::vector<RankLink> links_of(const PredictedStep& step);

// A rank waits where it does not compute.
double idle_share(const PredictedStep& step, int rank);

}  // namespace kvloom
