#include "launch/convert_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/quantity_text.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

void print_pair(const Json& content, const char* name) {
  const Json& before = content["from"][name];
  const Json& after = content["to"][name];
  if (before == after) {
    fmt::print("{:<24} {}\n", name, before.is_string() ? before.get<std::string>() : before.dump());
  } else {
    fmt::print("{:<24} {} -> {}\n", name, before.is_string() ? before.get<std::string>() : before.dump(),
               after.is_string() ? after.get<std::string>() : after.dump());
  }
}

void print_names(const char* title, const Json& names) {
  if (names.empty()) return;
  fmt::print("{}:", title);
  for (const Json& name : names) fmt::print(" {}", name.get<std::string>());
  fmt::print("\n");
}

void print_tensors(const Json& tensors) {
  for (const Json& tensor : tensors) {
    std::string from;
    for (const Json& input : tensor["from"])
      from += fmt::format("{}{}", from.empty() ? "" : " + ", input.get<std::string>());
    fmt::print("{} {} <- {} {}\n", tensor["name"].get<std::string>(), tensor["shape"].dump(),
               tensor["operation"].get<std::string>(), from);
  }
}

void print_left_over(const Json& left_over) {
  std::map<std::string, std::vector<std::string>> by_reason;
  for (const Json& tensor : left_over) by_reason[tensor["reason"]].push_back(tensor["name"]);
  for (const auto& [reason, names] : by_reason) {
    fmt::print("left over, {}: {}{}\n", reason, names.front(),
               names.size() == 1 ? "" : fmt::format(" and {} more", names.size() - 1));
  }
}

}  // namespace

void print_report(const ConversionReport& report, ReportForm form) {
  const Json& content = report.content;
  if (form == ReportForm::kJson) {
    fmt::print("{}\n", content.dump(2, ' ', false, Json::error_handler_t::replace));
    return;
  }
  for (const char* name :
       {"path", "form", "family", "layers", "kv_map", "kv_layers", "window", "parameters", "kv_bytes_per_token_bf16"}) {
    if (content["to"].contains(name)) {
      print_pair(content, name);
    } else {
      fmt::print("{:<24} {}\n", name, content["from"][name].get<std::string>());
    }
  }
  if (form == ReportForm::kEverything) print_tensors(content["tensors"]);
  print_left_over(content["left_over"]);
  print_names("missing in the source", content["missing"]);
  print_names("in the source and without a place", content["unclaimed"]);
  print_names("files taken along", content["files_taken_along"]);
  print_names("files not taken along", content["files_left"]);
  print_names("config fields kept as they are", content["config_fields_kept"]);
  if (content.contains("evaluation")) {
    const Json& evaluation = content["evaluation"];
    fmt::print("{:<24} {:.4f} -> {:.4f} over {} tokens\n", "perplexity", evaluation["perplexity_before"].get<double>(),
               evaluation["perplexity_after"].get<double>(), evaluation["tokens"].get<std::int64_t>());
  }
  if (content.contains("bytes")) {
    const auto bytes = content["bytes"].get<double>();
    const auto seconds = content["seconds"].get<double>();
    fmt::print("{} tensors, {} in {:.1f} s, {}/s\n", content["tensors"].size(), format_bytes(bytes), seconds,
               format_bytes(bytes / std::max(seconds, 1e-9)));
  }
}

}  // namespace kvloom
