// Every loss that a training reports.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "train/trainer.h"

namespace kvloom::test {

class Losses final : public TrainObserver {
 public:
  void on_start(const TrainStart&) override {}
  void on_step(const StepReport& report) override { by_step[report.step] = report.loss; }
  void on_evaluation(const EvaluationReport& report) override { validation[report.step] = report.loss; }
  void on_checkpoint(std::uint64_t, const std::string&) override {}

  std::map<std::uint64_t, double> by_step;
  std::map<std::uint64_t, double> validation;
};

}  // namespace kvloom::test
