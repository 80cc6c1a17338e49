// kvloom <verb>: one binary, ranks by mpirun.
#include <fmt/format.h>
#include <google/protobuf/stubs/logging.h>

#include <cstdio>
#include <exception>
#include <string>

#include "core/version.h"
#include "kernels/error.h"
#include "launch/openmp_waiting.h"
#include "launch/terminal.h"
#include "launch/verbs.h"

namespace {

constexpr const char* kFooter =
    "A first run, from the folder of the source:\n"
    "  kvloom tokenize --input book.txt --tokenizer bytes --valid-fraction 0.05 --output tokens.h5\n"
    "  kvloom train --config launch/recipes/tiny.pbtxt --set data.tokens=tokens.h5\n"
    "  kvloom generate --checkpoint out --prompt 'Once'\n"
    "Every verb explains itself with --help. Exit status: 0 done, 1 failed while running, 2 bad input.";

// "kvloom eval prepare", as far as verbs were named.
std::string command_of(const CLI::App& app) {
  std::string command = "kvloom";
  for (auto chosen = app.get_subcommands(); !chosen.empty(); chosen = chosen.front()->get_subcommands()) {
    command += " " + chosen.front()->get_name();
  }
  return command;
}

// CLI11 says only that a verb is missing.
std::string explain(const CLI::App& app, const CLI::ParseError& error, const char* first) {
  if (!app.get_subcommands().empty() || first[0] == '-') {
    return fmt::format("{} (see {} --help)", error.what(), command_of(app));
  }
  std::string verbs;
  for (const CLI::App* verb : app.get_subcommands({})) verbs += (verbs.empty() ? "" : ", ") + verb->get_name();
  return fmt::format("there is no verb '{}'; right are {}", first, verbs);
}

// Help and the version are asked for as exceptions.
void run(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {
    app.exit(asked);
  }
}

int complain(const std::string& command, const std::string& message, int status) {
  fmt::print(stderr, "{}: {}\n", command, kvloom::one_line(message));
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  kvloom::spin_briefly(argv);
  // What it has to say comes as an exception of ours.
  google::protobuf::SetLogHandler(nullptr);
  CLI::App app("kvloom trains and serves language models whose layers share keys and values.", "kvloom");
  app.set_version_flag("--version", kvloom::program_and_version());
  app.require_subcommand(1);
  app.footer(kFooter);
  kvloom::add_tokenize(app);
  kvloom::add_train(app);
  kvloom::add_eval(app);
  kvloom::add_generate(app);
  kvloom::add_serve(app);
  kvloom::add_convert(app);
  kvloom::add_inspect(app);
  kvloom::add_kvmap(app);
  kvloom::add_plan(app);
  kvloom::add_bench(app);
  if (argc == 1) {
    fmt::print(stderr, "{}", app.help());
    return 2;
  }
  try {
    run(app, argc, argv);
    kvloom::flush_output();
    return 0;
  } catch (const CLI::ParseError& error) {
    return complain(command_of(app), explain(app, error, argv[1]), 2);
  } catch (const kvloom::InputError& error) {
    return complain(command_of(app), error.what(), 2);
  } catch (const std::exception& error) {
    return complain(command_of(app), error.what(), 1);
  }
}
