#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "data/token_file.h"
#include "launch/inspect.h"
#include "launch/inspect_diff.h"
#include "launch/verbs.h"

namespace kvloom {
namespace {

// One flat object a line for each input; a line that is none is shown as it is.
nlohmann::ordered_json sources_of(const TokenFile& file) {
  nlohmann::ordered_json sources = nlohmann::ordered_json::array();
  using Json = nlohmann::ordered_json;
  const auto flat = [](int depth, Json::parse_event_t event, Json&) {
    return depth == 0 || (event != Json::parse_event_t::object_start && event != Json::parse_event_t::array_start);
  };
  std::istringstream lines(file.provenance());
  for (std::string line; std::getline(lines, line);) {
    const Json source = Json::parse(line, flat, false);
    sources.push_back(source.is_object() ? source : nlohmann::ordered_json{{"source", line}});
  }
  return sources;
}

nlohmann::ordered_json describe_token_file(const std::filesystem::path& path, InspectDepth depth) {
  const TokenFile file(path);
  if (depth == InspectDepth::kChecksums) {
    with_verify_progress([&](int threads, const auto& progress) { file.verify_all(threads, progress); });
  }
  return {{"kind", "tokens"},
          {"path", path.string()},
          {"checksums", depth == InspectDepth::kChecksums ? "right" : "not checked"},
          {"training_tokens", file.count(Part::kTraining)},
          {"training_documents", file.documents(Part::kTraining)},
          {"training_text_bytes", file.text_bytes(Part::kTraining)},
          {"validation_tokens", file.count(Part::kValidation)},
          {"validation_documents", file.documents(Part::kValidation)},
          {"validation_text_bytes", file.text_bytes(Part::kValidation)},
          {"vocab", file.vocab()},
          {"tokenizer", file.tokenizer_kind()},
          {"identity", file.identity()},
          {"created_by", file.header().created_by()},
          {"sources", sources_of(file)}};
}

}  // namespace

void add_inspect(CLI::App& app) {
  struct Options {
    std::string path;
    std::string other;
    bool json = false;
    bool verify = false;
    bool all = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("inspect", "Describe a checkpoint, output folder, model, token or safetensors file");
  verb->add_option("path", options->path, "What to describe")->required();
  verb->add_flag("--json", options->json, "Print JSON");
  auto* verify = verb->add_flag("--verify", options->verify, "Also check every checksum and shape");
  auto* diff = verb->add_option("--diff", options->other, "Compare the tensors with those of this checkpoint or model")
                   ->excludes(verify);
  verb->add_flag("--all", options->all, "Every difference, not the 10 largest")->needs(diff);
  verb->footer(
      "Example: kvloom inspect tokens.h5 --verify\n"
      "Example: kvloom inspect out/step-00000100 --json\n"
      "Example: kvloom inspect out/step-00000100 --diff out/step-00000200");
  verb->callback([options] {
    if (!options->other.empty()) {
      const InspectForm form = options->json ? InspectForm::kJson : InspectForm::kText;
      const DifferenceLines lines = options->all ? DifferenceLines::kAll : DifferenceLines::kLargest;
      return inspect_difference(options->path, options->other, form, lines, std::cout);
    }
    inspect({.path = options->path,
             .form = options->json ? InspectForm::kJson : InspectForm::kText,
             .depth = options->verify ? InspectDepth::kChecksums : InspectDepth::kContents,
             .describe_token_file = describe_token_file},
            std::cout);
  });
}

}  // namespace kvloom
