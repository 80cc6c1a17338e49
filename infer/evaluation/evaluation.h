// Tasks to results: on every rank the same, each having asked the model its share of the batches.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "infer/evaluation/metrics.h"
#include "infer/evaluation/progress.h"
#include "infer/evaluation/scoring.h"
#include "infer/evaluation/task.h"
#include "infer/tokenizer.h"
#include "parallel/communicator.h"

namespace kvloom {

// Of this rank, in tokens read by the model.
struct EvaluationProgress {
  std::int64_t done;
  std::int64_t total;
  std::size_t batches_done;
  std::size_t batches;
};

struct EvaluationOptions {
  ScoringOptions scoring;
  std::int64_t batch_tokens = 4096;
  std::optional<std::int64_t> limit;  // the first so many items of each task
  std::filesystem::path output;       // where progress is kept; empty: nowhere
  EvaluationStart start = EvaluationStart::kFresh;
  std::string model_identity;  // tells the weights from others, for progress that is gone on from
  std::function<void(const EvaluationProgress&)> on_batch;
  std::function<void(const std::string&)> warn;  // of what makes results say less than they seem to, a line each
};

struct TaskResult {
  const Task* task;
  std::vector<ItemResult> items;
  std::vector<Metric> metrics;
  std::optional<GridResult> grid;
};

// The tasks outlive the results. Batches are a function of the tasks alone and each is computed whole by one rank, so
// that any number of ranks, and an interrupted and resumed run, give the same scores. An item that is longer than the
// model's context loses its beginning, as in the harness, and a warning says of each task how many did. Collective.
// Throws InputError for an item that has nothing to score or does not fit the model, with file and line, and as
// ProgressLog does.
std::vector<TaskResult> evaluate_tasks(const Scorer& scorer, const Tokenizer& tokenizer, std::span<const Task> tasks,
                                       const EvaluationOptions& options, Communicator& world);

}  // namespace kvloom
