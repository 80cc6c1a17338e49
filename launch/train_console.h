// What `kvloom train` says: a banner, progress and a summary on standard error, figures in metrics.jsonl and
// TensorBoard.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "launch/terminal.h"
#include "proto/run.pb.h"
#include "train/metrics.h"
#include "train/tensorboard.h"
#include "train/trainer.h"

namespace kvloom {

class TrainConsole final : public TrainObserver {
 public:
  // `where` says in words what computes: "4 ranks on cpu". The config outlives it.
  TrainConsole(const proto::RunConfig& config, std::string where);

  void on_start(const TrainStart& start) override;
  void on_step(const StepReport& report) override;
  void on_evaluation(const EvaluationReport& report) override;
  void on_step_end() override;
  void on_checkpoint(std::uint64_t step, const std::string& folder) override;
  void on_note(const std::string& note) override;

  // The summary, once the run is over.
  void finish(const Trainer& trainer, TrainOutcome outcome);

 private:
  const proto::RunConfig& config_;
  std::string where_;
  std::filesystem::path directory_;
  std::unique_ptr<MetricsWriter> metrics_;
  std::unique_ptr<TensorboardWriter> tensorboard_;
  std::optional<StepMetrics> step_metrics_;  // of the step that is not over yet
  ProgressLine progress_;
  std::uint64_t first_step_ = 0;
  double smoothed_seconds_ = 0;  // of a step
  double step_seconds_ = 0;      // of all steps of this run
  double last_loss_ = 0;
  std::uint64_t peak_bytes_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace kvloom
