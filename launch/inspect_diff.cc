#include "launch/inspect_diff.h"

#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "core/convert/model_difference.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::size_t kLines = 10;

void print_some(const std::vector<std::string>& lines, DifferenceLines wanted, std::ostream& out) {
  const std::size_t count = wanted == DifferenceLines::kAll ? lines.size() : std::min(lines.size(), kLines);
  for (std::size_t i = 0; i < count; ++i) fmt::print(out, "{}\n", lines[i]);
  if (count < lines.size()) fmt::print(out, "... and {} more; --all shows them\n", lines.size() - count);
}

void print_text(const std::vector<TensorDifference>& all, const std::vector<std::string>& other, DifferenceLines wanted,
                std::ostream& out) {
  std::vector<std::string> differing;
  for (const TensorDifference& d : all) {
    if (d.differing == 0) continue;
    differing.push_back(fmt::format("{:<52} largest {:.3e} of {:.3e}, {} of {} elements ({})", d.name, d.largest,
                                    d.scale, d.differing, d.elements, d.dtypes));
  }
  print_some(differing, wanted, out);
  print_some(other, wanted, out);
  fmt::print(out, "{} tensors equal, {} differ, {} without a match\n", all.size() - differing.size(), differing.size(),
             other.size());
}

void print_json(const std::vector<TensorDifference>& all, const std::vector<std::string>& other, std::ostream& out) {
  Json tensors = Json::array();
  for (const TensorDifference& d : all) {
    tensors.push_back({{"name", d.name},
                       {"largest", std::isinf(d.largest) ? Json("infinite") : Json(d.largest)},
                       {"largest_value", d.scale},
                       {"differing", d.differing},
                       {"elements", d.elements},
                       {"dtype", d.dtypes}});
  }
  const bool equal =
      other.empty() && std::ranges::all_of(all, [](const TensorDifference& d) { return d.differing == 0; });
  const Json content = {{"kind", "difference"}, {"equal", equal}, {"tensors", tensors}, {"without_match", other}};
  out << content.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
}

}  // namespace

void inspect_difference(const fs::path& one, const fs::path& other, InspectForm form, DifferenceLines lines,
                        std::ostream& out) {
  const ModelDifference difference = difference_of_models(one, other);
  if (form == InspectForm::kJson) {
    print_json(difference.tensors, difference.unmatched, out);
  } else {
    print_text(difference.tensors, difference.unmatched, lines, out);
  }
}

}  // namespace kvloom
