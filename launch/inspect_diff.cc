#include "launch/inspect_diff.h"

#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "core/convert/model_source.h"
#include "core/convert/plan.h"
#include "core/convert/plan_limits.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::size_t kLines = 10;

struct Difference {
  std::string name;
  std::string dtypes;
  double largest = 0;  // of |a - b|; infinite where only one is a number
  double scale = 0;    // largest |a|
  std::int64_t differing = 0;
  std::int64_t elements = 0;
};

std::unique_ptr<TensorSource> open(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) reject_input("{} does not exist", path.string());
  if (fs::is_directory(path, error)) {
    if (const auto checkpoint = checkpoint_at(path)) return open_checkpoint(*checkpoint);
  }
  return open_safetensors(path);
}

bool is_real(const SourceTensor& tensor) { return tensor.dtype && is_castable(*tensor.dtype, DType::kF32); }

std::vector<float> values_of(TensorSource& source, const SourceTensor& tensor, const Rectangle& block) {
  const std::int64_t count = element_count(block.shape);
  std::vector<std::byte> bytes(static_cast<std::size_t>(count) * size_of(*tensor.dtype));
  source.read(tensor, block, bytes);
  std::vector<float> values(static_cast<std::size_t>(count));
  cast_elements(bytes.data(), *tensor.dtype, reinterpret_cast<std::byte*>(values.data()), DType::kF32, count);
  return values;
}

void compare(const std::vector<float>& a, const std::vector<float>& b, Difference& difference) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto x = static_cast<double>(a[i]);
    const auto y = static_cast<double>(b[i]);
    if (x == y || (std::isnan(x) && std::isnan(y))) {
      if (!std::isnan(x)) difference.scale = std::max(difference.scale, std::abs(x));
      continue;
    }
    ++difference.differing;
    const double apart = std::abs(x - y);
    difference.largest =
        std::max(difference.largest, std::isnan(apart) ? std::numeric_limits<double>::infinity() : apart);
    if (!std::isnan(x)) difference.scale = std::max(difference.scale, std::abs(x));
  }
}

Difference difference_of(TensorSource& one, TensorSource& other, const SourceTensor& a, const SourceTensor& b) {
  Difference difference{
      .name = a.name,
      .dtypes = a.stored_dtype == b.stored_dtype ? a.stored_dtype : a.stored_dtype + " and " + b.stored_dtype,
      .elements = element_count(a.shape)};
  for (const Rectangle& block : blocks_of({Shape(a.shape.size(), 0), a.shape}, DType::kF32, kBlockBytes)) {
    compare(values_of(one, a, block), values_of(other, b, block), difference);
  }
  return difference;
}

// What cannot be compared, with the reason.
std::vector<std::string> strangers(const TensorSource& one, const TensorSource& other) {
  std::vector<std::string> lines;
  for (const SourceTensor& tensor : one.tensors()) {
    const SourceTensor* match = other.find(tensor.name);
    if (match == nullptr) {
      lines.push_back(fmt::format("{} is only in {}", tensor.name, one.where()));
    } else if (match->shape != tensor.shape) {
      lines.push_back(fmt::format("{} is {} in {} and {} in {}", tensor.name, to_string(tensor.shape), one.where(),
                                  to_string(match->shape), other.where()));
    } else if (!is_real(tensor) || !is_real(*match)) {
      lines.push_back(fmt::format("{} is {} and {}, which are not compared", tensor.name, tensor.stored_dtype,
                                  match->stored_dtype));
    }
  }
  for (const SourceTensor& tensor : other.tensors()) {
    if (one.find(tensor.name) == nullptr) lines.push_back(fmt::format("{} is only in {}", tensor.name, other.where()));
  }
  return lines;
}

std::vector<Difference> differences(TensorSource& one, TensorSource& other) {
  std::vector<Difference> all;
  for (const SourceTensor& tensor : one.tensors()) {
    const SourceTensor* match = other.find(tensor.name);
    if (match == nullptr || match->shape != tensor.shape || !is_real(tensor) || !is_real(*match)) continue;
    all.push_back(difference_of(one, other, tensor, *match));
  }
  std::ranges::stable_sort(all, std::greater<>(), &Difference::largest);
  return all;
}

void print_some(const std::vector<std::string>& lines, DifferenceLines wanted, std::ostream& out) {
  const std::size_t count = wanted == DifferenceLines::kAll ? lines.size() : std::min(lines.size(), kLines);
  for (std::size_t i = 0; i < count; ++i) fmt::print(out, "{}\n", lines[i]);
  if (count < lines.size()) fmt::print(out, "... and {} more; --all shows them\n", lines.size() - count);
}

void print_text(const std::vector<Difference>& all, const std::vector<std::string>& other, DifferenceLines wanted,
                std::ostream& out) {
  std::vector<std::string> differing;
  for (const Difference& d : all) {
    if (d.differing == 0) continue;
    differing.push_back(fmt::format("{:<52} largest {:.3e} of {:.3e}, {} of {} elements ({})", d.name, d.largest,
                                    d.scale, d.differing, d.elements, d.dtypes));
  }
  print_some(differing, wanted, out);
  print_some(other, wanted, out);
  fmt::print(out, "{} tensors equal, {} differ, {} without a match\n", all.size() - differing.size(), differing.size(),
             other.size());
}

void print_json(const std::vector<Difference>& all, const std::vector<std::string>& other, std::ostream& out) {
  Json tensors = Json::array();
  for (const Difference& d : all) {
    tensors.push_back({{"name", d.name},
                       {"largest", std::isinf(d.largest) ? Json("infinite") : Json(d.largest)},
                       {"largest_value", d.scale},
                       {"differing", d.differing},
                       {"elements", d.elements},
                       {"dtype", d.dtypes}});
  }
  const bool equal = other.empty() && std::ranges::all_of(all, [](const Difference& d) { return d.differing == 0; });
  const Json content = {{"kind", "difference"}, {"equal", equal}, {"tensors", tensors}, {"without_match", other}};
  out << content.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
}

}  // namespace

void inspect_difference(const fs::path& one, const fs::path& other, InspectForm form, DifferenceLines lines,
                        std::ostream& out) {
  const std::unique_ptr<TensorSource> a = open(one);
  const std::unique_ptr<TensorSource> b = open(other);
  const std::vector<Difference> all = differences(*a, *b);
  const std::vector<std::string> unmatched = strangers(*a, *b);
  if (form == InspectForm::kJson) {
    print_json(all, unmatched, out);
  } else {
    print_text(all, unmatched, lines, out);
  }
}

}  // namespace kvloom
