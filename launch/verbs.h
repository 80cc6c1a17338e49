// The verbs of the command line. Each function adds one with its options, and what it does when it is chosen: it throws
// InputError for what the user can mend and Error for what failed.
#pragma once

#include <CLI/CLI.hpp>

namespace kvloom {

void add_kvmap(CLI::App& app);
void add_plan(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_train(CLI::App& app);
void add_eval(CLI::App& app);
void add_generate(CLI::App& app);
void add_serve(CLI::App& app);
void add_convert(CLI::App& app);
void add_inspect(CLI::App& app);
void add_bench(CLI::App& app);
void add_completion(CLI::App& app);

}  // namespace kvloom
