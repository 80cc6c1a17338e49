// Task files: what is asked of a model, one JSON object a line. README.md beside this has the form.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace kvloom {

// The evaluation harness's output types, by its names.
enum class TaskKind : std::uint8_t {
  kMultipleChoice,        // multiple_choice: which of several is likeliest
  kLogLikelihood,         // loglikelihood: how likely a target is, and whether greedy decoding gives it
  kLogLikelihoodRolling,  // loglikelihood_rolling: how likely a whole text is
};
const char* name_of(TaskKind kind);

// What is scored: the log-likelihood of `continuation` behind `context`; of a rolling task, of `continuation` alone.
struct Query {
  std::string context;
  std::string continuation;
};

struct TaskItem {
  std::size_t line;                  // in the file, from 1
  nlohmann::ordered_json content;    // as written
  std::vector<Query> queries;        // one a choice, else one
  std::vector<std::string> choices;  // multiple choice: what lengths are taken of
  std::vector<int> answers;          // multiple choice: right choices, at least one
  std::int64_t words = 0;            // rolling: what perplexities are per
  std::int64_t bytes = 0;
};

// A table of a task's accuracy by two fields of its items.
struct ResultGrid {
  std::string rows;
  std::string columns;
};

struct Task {
  std::string name;
  TaskKind kind;
  std::string path;
  std::string target_delimiter;
  std::vector<std::string> metrics;  // in the order of the results
  nlohmann::ordered_json version;    // null, a number or a text
  std::optional<ResultGrid> grid;
  std::uint64_t checksum = 0;  // of the file's bytes
  std::vector<TaskItem> items;
};

// The metrics that a kind of task can have; the harness's first.
std::span<const char* const> metrics_of(TaskKind kind);

// The whole file. Throws InputError naming file, line, field and what would be right.
Task read_task_file(const std::filesystem::path& path);

// The same of text; `name` stands in messages and, without its folder and extension, names a task that does not.
Task parse_task(const std::string& text, const std::string& name);

// Every file. Throws InputError when two tasks have one name.
std::vector<Task> read_task_files(std::span<const std::string> paths);

}  // namespace kvloom
