// kvloom <verb>: one binary, ranks by mpirun.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/nearest_name.h"
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
    "Every verb explains itself with --help, or kvloom help VERB. Exit status: 0 done, 1 failed while running, 2 bad "
    "input.";

// "kvloom eval prepare", as far as verbs were named.
std::string command_of(const CLI::App& app) {
  std::string command = "kvloom";
  for (auto chosen = app.get_subcommands(); !chosen.empty(); chosen = chosen.front()->get_subcommands()) {
    command += " " + chosen.front()->get_name();
  }
  return command;
}

std::vector<std::string> verbs_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* verb : app.get_subcommands({})) names.push_back(verb->get_name());
  return names;
}

std::string no_verb(const CLI::App& app, const std::string& name) {
  const std::vector<std::string> verbs = verbs_of(app);
  return fmt::format("there is no verb '{}'{}; right are {}", name, kvloom::did_you_mean(name, verbs),
                     fmt::join(verbs, ", "));
}

// The verb that was named last: "kvloom eval prepare" means "prepare".
const CLI::App& chosen_verb(const CLI::App& app) {
  const CLI::App* chosen = &app;
  while (!chosen->get_subcommands().empty()) chosen = chosen->get_subcommands().front();
  return *chosen;
}

// What an unknown option among the words was meant to be.
std::string meant_option(const CLI::App& verb, int argc, char** argv) {
  std::vector<std::string> names;
  for (const CLI::Option* option : verb.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    word.resize(std::min(word.find('='), word.size()));
    if (!word.starts_with("--") || std::ranges::find(names, word) != names.end()) continue;
    const std::string meant = kvloom::did_you_mean(word, names);
    if (!meant.empty()) return fmt::format("; there is no '{}'{}", word, meant);
  }
  return {};
}

// CLI11 says only that a verb is missing.
std::string explain(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  if (app.get_subcommands().empty() && argv[1][0] != '-') return no_verb(app, argv[1]);
  return fmt::format("{}{} (see {} --help)", error.what(), meant_option(chosen_verb(app), argc, argv), command_of(app));
}

// `kvloom help`, `kvloom help eval prepare`.
int print_help(CLI::App& app, std::span<char* const> words) {
  CLI::App* verb = &app;
  std::string before;
  for (const std::string word : words) {
    const std::vector<std::string> verbs = verbs_of(*verb);
    if (std::ranges::find(verbs, word) == verbs.end()) {
      if (verbs.empty()) kvloom::reject_input("'{} {}' has no verbs of its own", before, verb->get_name());
      kvloom::reject_input("{}", no_verb(*verb, word));
    }
    before += (before.empty() ? "" : " ") + verb->get_name();
    verb = verb->get_subcommand(word);
  }
  fmt::print("{}", verb->help(before));
  kvloom::flush_output();
  return 0;
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
  kvloom::add_completion(app);
  if (argc == 1) {
    fmt::print(stderr, "{}", app.help());
    return 2;
  }
  try {
    if (std::string_view(argv[1]) == "help") return print_help(app, std::span(argv + 2, argv + argc));
    run(app, argc, argv);
    kvloom::flush_output();
    return 0;
  } catch (const CLI::ParseError& error) {
    return complain(command_of(app), explain(app, error, argc, argv), 2);
  } catch (const kvloom::InputError& error) {
    return complain(command_of(app), error.what(), 2);
  } catch (const std::exception& error) {
    return complain(command_of(app), error.what(), 1);
  }
}
