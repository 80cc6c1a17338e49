// kvloom eval --tasks: the part of the verb that asks task files, on any number of ranks.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/rank_device.h"

namespace kvloom {

// What every form of kvloom eval has.
struct EvalModel {
  std::string checkpoint;
  std::string precision;
  RankDeviceOptions device;
  std::optional<int> passes;
  bool sequential = false;
  std::optional<std::int64_t> limit;
  bool json = false;
};

struct EvalTasks {
  std::vector<std::string> files;
  std::string output;
  std::string resume = "no";
  std::int64_t batch_tokens = 4096;

  void add_to(CLI::App& verb);
};

// What --help says of --tasks, with examples.
extern const char* const kEvalTasksFooter;

// Joins the world, evaluates, and prints on rank 0. Throws InputError for what the user can mend.
void evaluate_task_files(const EvalTasks& tasks, const EvalModel& choice);

// The verbs below kvloom eval that make task files: prepare and needle.
void add_eval_prepare(CLI::App& verb);

}  // namespace kvloom
