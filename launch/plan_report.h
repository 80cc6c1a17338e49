// A predicted step as `kvloom plan` shows it.
#pragma once

#include <string>

#include "parallel/placement.h"
#include "parallel/step_cost.h"

namespace kvloom {

struct PlanReport {
  const StepShape& shape;
  int data_ranks;
  std::string placement;  // how the stages came about: "auto", "even", "given"
  const PredictedStep& step;
  const PredictedStep& even;
};

// For people: tables of stages, ranks and messages, the prediction, the schedule drawn in characters.
std::string plan_text(const PlanReport& report);

// For programs: the same, bytes and seconds unrounded.
std::string plan_json(const PlanReport& report);

}  // namespace kvloom
