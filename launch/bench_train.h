// `kvloom bench train`: how fast a training step is, beside the rate of the matrix products alone in the same run.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "launch/bench_form.h"
#include "train/step_measurement.h"

namespace kvloom {

struct BenchTrainRequest {
  StepMeasurementRequest step;
  std::vector<std::string> maps;  // compared with the first
  BenchForm form = BenchForm::kText;
};

// A map that cannot be measured has its reason in its row; the others are measured all the same, then Error is thrown.
void bench_train(const BenchTrainRequest& request, std::ostream& out);

}  // namespace kvloom
