// Results as people and programs read them: a table, and the evaluation harness's own files.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "infer/evaluation/evaluation.h"

namespace kvloom {

// What the results say of the run, in the harness's "config".
struct EvaluationRun {
  std::string model;                 // as the user named it
  nlohmann::ordered_json arguments;  // an object: passes, precision and so on
  nlohmann::ordered_json limit;      // null: none
};

// Aligned columns: task, items, metric, value, standard error; then each task's grid.
std::string results_table(std::span<const TaskResult> results);

// The harness's results.json: "results" {task: {"acc,none": .., "acc_stderr,none": .. or "N/A"}}, "configs",
// "versions", "n-shot", "higher_is_better", "n-samples", "config"; and "grids", which it does not have.
nlohmann::ordered_json results_json(std::span<const TaskResult> results, const EvaluationRun& run);

// One item as a line of the harness's samples_<task>.jsonl, without its hashes.
nlohmann::ordered_json sample_json(const TaskResult& result, std::size_t item);

// Writes results.json and samples_<task>.jsonl of every task into the folder, each file whole or not at all.
void write_results(const std::filesystem::path& folder, std::span<const TaskResult> results,
                   const nlohmann::ordered_json& json);

}  // namespace kvloom
