// kvloom completion: what a shell completes, from the same tables of verbs and options that help prints.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <string>
#include <vector>

#include "launch/verbs.h"

namespace kvloom {
namespace {

// A verb, "" for none yet or "eval prepare", and what may follow it.
struct Choice {
  std::string verb;
  std::vector<std::string> verbs;
  std::vector<std::string> options;
};

void collect(const CLI::App& app, const std::string& verb, std::vector<Choice>& choices) {
  Choice choice{verb, {}, {}};
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) choice.options.push_back("--" + name);
  }
  for (const CLI::App* below : app.get_subcommands({})) choice.verbs.push_back(below->get_name());
  const std::vector<std::string> verbs = choice.verbs;
  choices.push_back(std::move(choice));
  for (const std::string& name : verbs) {
    collect(*app.get_subcommand(name), verb.empty() ? name : verb + " " + name, choices);
  }
}

// A function for bash. zsh runs it, too.
std::string completion_of(const CLI::App& app) {
  std::vector<Choice> choices;
  collect(app, "", choices);
  std::string known;
  std::string words;
  for (const Choice& choice : choices) {
    if (!choice.verbs.empty()) {
      known += fmt::format(
          "      '{}') case ${{COMP_WORDS[i]}} in {}) verb=\"${{verb:+$verb }}${{COMP_WORDS[i]}}\" ;; esac ;;\n",
          choice.verb, fmt::join(choice.verbs, "|"));
    }
    words += fmt::format("    '{}') words='{}{}{}' ;;\n", choice.verb, fmt::join(choice.verbs, " "),
                         choice.verbs.empty() ? "" : " ", fmt::join(choice.options, " "));
  }
  return fmt::format(
      "_kvloom() {{\n"
      "  local current=${{COMP_WORDS[COMP_CWORD]}} verb= words= i\n"
      "  for ((i = 1; i < COMP_CWORD; ++i)); do\n"
      "    case $verb in\n{}    esac\n"
      "  done\n"
      "  case $verb in\n{}  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
      "  [[ $current == -* ]] || COMPREPLY+=($(compgen -f -- \"$current\"))\n"
      "}}\n"
      "complete -o filenames -F _kvloom kvloom\n",
      known, words);
}

}  // namespace

void add_completion(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  CLI::App* verb = app.add_subcommand("completion", "Print what makes a shell complete kvloom's verbs and options");
  verb->add_option("shell", *shell, "bash or zsh")->required()->check(CLI::IsMember({"bash", "zsh"}));
  verb->footer(
      "Example: source <(kvloom completion bash)\n"
      "Example: kvloom completion bash > ~/.local/share/bash-completion/completions/kvloom");
  verb->callback([&app, shell] {
    if (*shell == "zsh") fmt::print("autoload -U +X bashcompinit && bashcompinit\n");
    fmt::print("{}", completion_of(app));
  });
}

}  // namespace kvloom
