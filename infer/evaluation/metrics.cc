#include "infer/evaluation/metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "infer/evaluation/python_random.h"
#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint32_t kResamplers = 100;
constexpr std::size_t kResamples = 1000;  // of each

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double sample_deviation(std::span<const double> values) {
  const double mean = mean_of(values);
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

double length_of(const std::string& choice, const std::string& metric) {
  if (metric == "acc_norm") return static_cast<double>(count_characters(choice));
  return metric == "acc_bytes" ? static_cast<double>(choice.size()) : 1.0;
}

// Of equal ones the first, as numpy has it.
int best_choice(const TaskItem& item, const ItemResult& result, const std::string& metric) {
  std::vector<double> values;
  for (std::size_t i = 0; i < item.choices.size(); ++i) {
    values.push_back(result.scores[i].log_likelihood / length_of(item.choices[i], metric));
  }
  return static_cast<int>(std::ranges::max_element(values) - values.begin());
}

double text_weight(const TaskItem& item, const ItemResult& result, const std::string& metric) {
  if (metric == "word_perplexity") return static_cast<double>(item.words);
  if (metric == "token_perplexity") return static_cast<double>(result.tokens);
  return static_cast<double>(item.bytes);
}

Metric text_metric(const std::string& name, std::span<const ItemMetric> items) {
  double sum = 0;
  double weight = 0;
  for (const ItemMetric& item : items) {
    sum += item.value;
    weight += *item.weight;
  }
  const double nats = -sum / weight;
  return {name, name == "bits_per_byte" ? nats / std::log(2.0) : std::exp(nats), std::nullopt, false};
}

Metric metric_over(const std::string& name, std::span<const ItemMetric> items) {
  if (items.front().weight.has_value()) return text_metric(name, items);
  std::vector<double> values;
  for (const ItemMetric& item : items) values.push_back(item.value);
  const bool perplexity = name == "perplexity";
  Metric metric{name, perplexity ? std::exp(-mean_of(values)) : mean_of(values), std::nullopt, !perplexity};
  if (values.size() > 1) {
    metric.standard_error = perplexity ? standard_error_of_perplexity(values) : standard_error_of_mean(values);
  }
  return metric;
}

// The place of a value among those seen.
std::size_t place_of(const Json& value, std::vector<Json>& seen) {
  const auto found = std::ranges::find(seen, value);
  if (found != seen.end()) return static_cast<std::size_t>(found - seen.begin());
  seen.push_back(value);
  return seen.size() - 1;
}

std::vector<Json> values_of(const Task& task, const std::string& field, std::size_t items) {
  std::vector<Json> values;
  for (std::size_t i = 0; i < items; ++i) place_of(task.items[i].content.at(field), values);
  if (std::ranges::all_of(values, [](const Json& value) { return value.is_number(); })) {
    std::ranges::sort(values, {}, [](const Json& value) { return value.get<double>(); });
  }
  return values;
}

}  // namespace

ItemMetric item_metric(const Task& task, const TaskItem& item, const ItemResult& result, const std::string& metric) {
  switch (task.kind) {
    case TaskKind::kMultipleChoice: {
      const int best = best_choice(item, result, metric);
      return {std::ranges::find(item.answers, best) != item.answers.end() ? 1.0 : 0.0, std::nullopt};
    }
    case TaskKind::kLogLikelihood: {
      const Score& score = result.scores.front();
      return {metric == "acc" ? static_cast<double>(score.greedy) : score.log_likelihood, std::nullopt};
    }
    case TaskKind::kLogLikelihoodRolling:
      return {result.scores.front().log_likelihood, text_weight(item, result, metric)};
  }
  fail("evaluation: kind {}", static_cast<int>(task.kind));
}

std::vector<Metric> task_metrics(const Task& task, std::span<const ItemResult> results) {
  std::vector<Metric> metrics;
  for (const std::string& name : task.metrics) {
    std::vector<ItemMetric> items;
    for (std::size_t i = 0; i < results.size(); ++i) {
      items.push_back(item_metric(task, task.items[i], results[i], name));
    }
    metrics.push_back(metric_over(name, items));
  }
  return metrics;
}

GridResult grid_result(const Task& task, std::span<const ItemResult> results) {
  GridResult grid;
  grid.rows = values_of(task, task.grid->rows, results.size());
  grid.columns = values_of(task, task.grid->columns, results.size());
  grid.cells.assign(grid.rows.size(), std::vector<GridResult::Cell>(grid.columns.size()));
  for (std::size_t i = 0; i < results.size(); ++i) {
    const Json& content = task.items[i].content;
    GridResult::Cell& cell = grid.cells[place_of(content.at(task.grid->rows), grid.rows)]
                                       [place_of(content.at(task.grid->columns), grid.columns)];
    cell.accuracy += item_metric(task, task.items[i], results[i], "acc").value;
    ++cell.items;
  }
  for (auto& row : grid.cells) {
    for (GridResult::Cell& cell : row) {
      if (cell.items > 0) cell.accuracy /= static_cast<double>(cell.items);
    }
  }
  return grid;
}

double standard_error_of_mean(std::span<const double> values) {
  return sample_deviation(values) / std::sqrt(static_cast<double>(values.size()));
}

double standard_error_of_perplexity(std::span<const double> log_likelihoods) {
  std::vector<double> resampled(kResamplers * kResamples);
#pragma omp parallel for schedule(dynamic)
  for (std::uint32_t seed = 0; seed < kResamplers; ++seed) {
    PythonRandom random(seed);
    for (std::size_t i = 0; i < kResamples; ++i) {
      double sum = 0;
      for (std::size_t draw = 0; draw < log_likelihoods.size(); ++draw) {
        sum += log_likelihoods[random.index(log_likelihoods.size())];
      }
      resampled[seed * kResamples + i] = std::exp(-sum / static_cast<double>(log_likelihoods.size()));
    }
  }
  return sample_deviation(resampled);
}

}  // namespace kvloom
