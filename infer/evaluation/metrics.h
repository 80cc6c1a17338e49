// What scores say of a task, by the harness's formulas (lm_eval/api/metrics.py and task.py of version 0.4).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "infer/evaluation/scoring.h"
#include "infer/evaluation/task.h"

namespace kvloom {

// Of an item: the score of each of its queries, and how many tokens were targets. A text's windows are one query.
struct ItemResult {
  std::vector<Score> scores;
  std::int64_t tokens = 0;
};

struct Metric {
  std::string name;
  double value;
  std::optional<double> standard_error;
  bool higher_is_better;
};

// A metric of one item as the harness keeps it with the sample: of accuracies 0 or 1, of perplexity the log-likelihood;
// of a text's the log-likelihood and what it is divided by.
struct ItemMetric {
  double value;
  std::optional<double> weight;
};
ItemMetric item_metric(const Task& task, const TaskItem& item, const ItemResult& result, const std::string& metric);

// The task's metrics over its first results.size() items, at least one.
std::vector<Metric> task_metrics(const Task& task, std::span<const ItemResult> results);

// Accuracy by two fields of the items. Numbers stand in order, other values as they come.
struct GridResult {
  struct Cell {
    double accuracy = 0;
    std::int64_t items = 0;
  };
  std::vector<nlohmann::ordered_json> rows;
  std::vector<nlohmann::ordered_json> columns;
  std::vector<std::vector<Cell>> cells;  // by row, by column
};
GridResult grid_result(const Task& task, std::span<const ItemResult> results);

// The sample standard error of the mean of at least two values.
double standard_error_of_mean(std::span<const double> values);

// The same of exp(-mean) by resampling, as the harness does by default: the deviation of 100,000 resamples, drawn by
// Python's generators with seeds 0 to 99.
double standard_error_of_perplexity(std::span<const double> log_likelihoods);

}  // namespace kvloom
