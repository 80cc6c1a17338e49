#include "infer/evaluation/results.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/file.h"
#include "infer/unicode.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;
using Row = std::vector<std::string>;

// Columns as wide as their widest cell; the first is aligned left, the others right.
std::string aligned(const std::vector<Row>& rows) {
  std::vector<std::size_t> widths;
  for (const Row& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], count_characters(row[i]));
  }
  std::string text;
  for (const Row& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string fill(widths[i] - count_characters(row[i]), ' ');
      if (i > 0) line += "  ";
      line += i == 0 ? row[i] + fill : fill + row[i];
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

std::string figure(double value) {
  return std::abs(value) < 1e6 ? fmt::format("{:.4f}", value) : fmt::format("{:.4e}", value);
}

std::string label(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

std::string grid_table(const TaskResult& result) {
  const GridResult& grid = *result.grid;
  std::vector<Row> rows;
  rows.push_back({fmt::format("{} / {}", result.task->grid->rows, result.task->grid->columns)});
  for (const Json& column : grid.columns) rows.front().push_back(label(column));
  for (std::size_t r = 0; r < grid.rows.size(); ++r) {
    Row& row = rows.emplace_back(Row{label(grid.rows[r])});
    for (const GridResult::Cell& cell : grid.cells[r]) {
      row.push_back(cell.items == 0 ? "-" : fmt::format("{:.3f}", cell.accuracy));
    }
  }
  return fmt::format("{}: acc by {} and {}\n{}", result.task->name, result.task->grid->rows, result.task->grid->columns,
                     aligned(rows));
}

Json grid_json(const TaskResult& result) {
  Json cells = Json::array();
  for (std::size_t r = 0; r < result.grid->rows.size(); ++r) {
    for (std::size_t c = 0; c < result.grid->columns.size(); ++c) {
      const GridResult::Cell& cell = result.grid->cells[r][c];
      if (cell.items == 0) continue;
      cells.push_back({{result.task->grid->rows, result.grid->rows[r]},
                       {result.task->grid->columns, result.grid->columns[c]},
                       {"acc", cell.accuracy},
                       {"items", cell.items}});
    }
  }
  return cells;
}

const char* aggregation_of(const std::string& metric) {
  if (metric.starts_with("acc")) return "mean";
  if (metric == "perplexity") return "perplexity";
  return metric == "bits_per_byte" ? "bits_per_byte" : "weighted_perplexity";
}

Json config_of(const TaskResult& result) {
  Json metrics = Json::array();
  for (const Metric& metric : result.metrics) {
    metrics.push_back({{"metric", metric.name},
                       {"aggregation", aggregation_of(metric.name)},
                       {"higher_is_better", metric.higher_is_better}});
  }
  Json config = {{"task", result.task->name},
                 {"dataset_path", result.task->path},
                 {"output_type", name_of(result.task->kind)},
                 {"target_delimiter", result.task->target_delimiter},
                 {"metric_list", metrics},
                 {"num_fewshot", 0},
                 {"repeats", 1}};
  if (!result.task->version.is_null()) config["metadata"] = {{"version", result.task->version}};
  return config;
}

Json values_of(const TaskResult& result) {
  Json values = {{"name", result.task->name}, {"alias", result.task->name}, {"sample_len", result.items.size()}};
  for (const Metric& metric : result.metrics) {
    values[metric.name + ",none"] = metric.value;
    values[metric.name + "_stderr,none"] = metric.standard_error.has_value() ? Json(*metric.standard_error) : "N/A";
  }
  return values;
}

std::string target_of(const TaskItem& item, TaskKind kind) {
  if (kind != TaskKind::kMultipleChoice) return item.queries.front().continuation;
  if (item.answers.size() == 1) return std::to_string(item.answers.front());
  return fmt::format("[{}]", fmt::join(item.answers, ", "));
}

// The harness writes numbers of responses as texts, as Python prints them.
Json response_of(const Score& score, TaskKind kind) {
  const std::string value = Json(score.log_likelihood).dump();
  if (kind == TaskKind::kLogLikelihoodRolling) return value;
  return Json::array({value, score.greedy ? "True" : "False"});
}

}  // namespace

std::string results_table(std::span<const TaskResult> results) {
  std::vector<Row> rows = {{"task", "items", "metric", "value", "stderr"}};
  for (const TaskResult& result : results) {
    for (std::size_t i = 0; i < result.metrics.size(); ++i) {
      const Metric& metric = result.metrics[i];
      rows.push_back({i == 0 ? result.task->name : "", i == 0 ? std::to_string(result.items.size()) : "", metric.name,
                      figure(metric.value), metric.standard_error.has_value() ? figure(*metric.standard_error) : ""});
    }
  }
  std::string text = aligned(rows);
  for (const TaskResult& result : results) {
    if (result.grid.has_value()) text += "\n" + grid_table(result);
  }
  return text;
}

nlohmann::ordered_json results_json(std::span<const TaskResult> results, const EvaluationRun& run) {
  Json json;
  for (const char* part :
       {"results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config"}) {
    json[part] = Json::object();
  }
  for (const TaskResult& result : results) {
    const std::string& task = result.task->name;
    json["results"][task] = values_of(result);
    json["group_subtasks"][task] = Json::array();
    json["configs"][task] = config_of(result);
    json["versions"][task] = result.task->version;
    json["n-shot"][task] = 0;
    for (const Metric& metric : result.metrics) json["higher_is_better"][task][metric.name] = metric.higher_is_better;
    json["n-samples"][task] = {{"original", result.task->items.size()}, {"effective", result.items.size()}};
    if (result.grid.has_value()) json["grids"][task] = grid_json(result);
  }
  json["config"] = {{"model", "kvloom"}, {"model_args", run.arguments}, {"limit", run.limit}};
  json["model_source"] = "kvloom";
  json["model_name"] = run.model;
  return json;
}

nlohmann::ordered_json sample_json(const TaskResult& result, std::size_t index) {
  const TaskItem& item = result.task->items[index];
  const ItemResult& scored = result.items[index];
  const TaskKind kind = result.task->kind;
  Json sample = {{"doc_id", index}, {"doc", item.content}, {"target", target_of(item, kind)}};
  for (std::size_t i = 0; i < item.queries.size(); ++i) {
    Json& arguments = sample["arguments"]["gen_args_" + std::to_string(i)];
    const Query& query = item.queries[i];
    if (kind == TaskKind::kLogLikelihoodRolling) {
      arguments = {{"arg_0", query.continuation}};
    } else {
      arguments = {{"arg_0", query.context}, {"arg_1", query.continuation}};
    }
    sample["resps"].push_back(Json::array({response_of(scored.scores[i], kind)}));
    sample["filtered_resps"].push_back(response_of(scored.scores[i], kind));
  }
  sample["filter"] = "none";
  sample["metrics"] = result.task->metrics;
  for (const std::string& metric : result.task->metrics) {
    const ItemMetric value = item_metric(*result.task, item, scored, metric);
    sample[metric] = value.weight.has_value() ? Json::array({value.value, *value.weight}) : Json(value.value);
  }
  return sample;
}

void write_results(const std::filesystem::path& folder, std::span<const TaskResult> results,
                   const nlohmann::ordered_json& json) {
  std::filesystem::create_directories(folder);
  for (const TaskResult& result : results) {
    AtomicFile file(folder / fmt::format("samples_{}.jsonl", result.task->name));
    for (std::size_t i = 0; i < result.items.size(); ++i) {
      const std::string line = sample_json(result, i).dump() + "\n";
      file.write(std::as_bytes(std::span(line)));
    }
    file.commit();
  }
  write_file_atomically(folder / "results.json", json.dump(2) + "\n");
}

}  // namespace kvloom
