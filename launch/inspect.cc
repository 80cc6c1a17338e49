#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/quantity_text.h"
#include "data/inspection.h"
#include "kernels/error.h"
#include "launch/inspect_diff.h"
#include "launch/terminal.h"
#include "launch/verbs.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

// After all of an output directory was shown: what of it is damaged.
void refuse_damaged(const Json& description) {
  const auto checkpoints = description.find("checkpoints");
  if (checkpoints == description.end()) return;
  const auto is_whole = [](const Json& checkpoint) { return checkpoint["whole"].get<bool>(); };
  const auto damaged = std::ranges::find_if_not(*checkpoints, is_whole);
  if (damaged == checkpoints->end()) return;
  reject_input("{}: {} of {} checkpoints are damaged; the first: {}", description["path"].get<std::string>(),
               std::ranges::count_if(*checkpoints, std::not_fn(is_whole)), checkpoints->size(),
               (*damaged)["reason"].get<std::string>());
}

// A number with its thousands apart: 7 340 032.
std::string grouped(std::uint64_t number) {
  std::string digits = std::to_string(number);
  for (std::size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, 1, ' ');
  return digits;
}

std::string as_text(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "none";
  if (value.is_number_unsigned() || (value.is_number_integer() && value.get<std::int64_t>() >= 0)) {
    return grouped(value.get<std::uint64_t>());
  }
  if (!value.is_object()) return value.dump();
  std::string fields;
  for (const auto& [name, field] : value.items()) {
    if (field == "") continue;
    fields += fmt::format("{}{} {}", fields.empty() ? "" : ", ", name, as_text(field));
  }
  return fields;
}

void print_line(std::ostream& out, std::string_view name, std::string_view text) {
  if (!text.empty()) fmt::print(out, "{:<21} {}\n", name, text);
}

// What a table shows of a field: units stand beside numbers, there being no heading.
std::string cell_text(const std::string& name, const Json& field) {
  if (name == "step") return {};  // the checkpoint's name says it
  if (name == "checksums") return field == "right" ? "checksums right" : "";
  if (field.is_boolean()) return fmt::format("{}{}", field.get<bool>() ? "" : "not ", name);
  if (field.is_number()) return fmt::format("{} {}", as_text(field), name);
  return as_text(field);
}

// A list of objects with like fields.
void print_table(std::ostream& out, std::string_view title, const Json& rows) {
  fmt::print(out, "\n{} ({})\n", title, rows.size());
  std::vector<std::vector<std::string>> cells;
  std::vector<std::size_t> widths;
  for (const Json& row : rows) {
    std::vector<std::string>& line = cells.emplace_back();
    for (const auto& [name, field] : row.items()) {
      std::string text = cell_text(name, field);
      line.push_back(std::move(text));
    }
    widths.resize(std::max(widths.size(), line.size()));
    // Nothing is aligned behind a row's last cell.
    for (std::size_t i = 0; i + 1 < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  for (const auto& line : cells) {
    std::string text;
    for (std::size_t column = 0; column < line.size(); ++column) {
      if (!line[column].empty()) text += fmt::format("  {:<{}}", line[column], widths[column]);
    }
    fmt::print(out, "{}\n", text.substr(0, text.find_last_not_of(' ') + 1));
  }
}

// Plain fields as lines, then lists of objects as tables.
void print_text(std::ostream& out, const Json& description) {
  for (const auto& [name, value] : description.items()) {
    if (!value.is_array()) print_line(out, name, as_text(value));
  }
  for (const auto& [name, value] : description.items()) {
    if (value.is_array()) print_table(out, name, value);
  }
}

// Prints the description; where checksums are wanted, an output directory of which a checkpoint is damaged is refused
// behind it.
void inspect(const std::filesystem::path& path, InspectForm form, InspectDepth depth) {
  ProgressLine line;
  const Json description =
      describe(path, {.depth = depth, .progress = [&](const VerifyProgress& done) {
                        line.update(fmt::format("{} of {} checked", format_bytes(static_cast<double>(done.bytes)),
                                                format_bytes(static_cast<double>(done.of_bytes))));
                      }});
  line.end();
  if (form == InspectForm::kJson) {
    std::cout << description.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
  } else {
    print_text(std::cout, description);
  }
  if (depth != InspectDepth::kChecksums) return;
  std::cout.flush();
  refuse_damaged(description);
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
    inspect(options->path, options->json ? InspectForm::kJson : InspectForm::kText,
            options->verify ? InspectDepth::kChecksums : InspectDepth::kContents);
  });
}

}  // namespace kvloom
