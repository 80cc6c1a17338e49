// kvloom eval --tasks: the part of the verb that asks task files, on any number of ranks.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "launch/eval_model.h"

namespace kvloom {

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
void evaluate_task_files(const EvalTasks& tasks, const EvalModelOptions& choice);

// The verbs below kvloom eval that make task files: prepare and needle.
void add_eval_prepare(CLI::App& verb);

}  // namespace kvloom
