#include "core/convert/model_difference.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>

#include "core/convert/model_source.h"
#include "core/convert/plan.h"
#include "core/convert/plan_limits.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

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

void compare(const std::vector<float>& a, const std::vector<float>& b, TensorDifference& difference) {
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

TensorDifference difference_of(TensorSource& one, TensorSource& other, const SourceTensor& a, const SourceTensor& b) {
  TensorDifference difference{
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

std::vector<TensorDifference> differences(TensorSource& one, TensorSource& other) {
  std::vector<TensorDifference> all;
  for (const SourceTensor& tensor : one.tensors()) {
    const SourceTensor* match = other.find(tensor.name);
    if (match == nullptr || match->shape != tensor.shape || !is_real(tensor) || !is_real(*match)) continue;
    all.push_back(difference_of(one, other, tensor, *match));
  }
  std::ranges::stable_sort(all, std::greater<>(), &TensorDifference::largest);
  return all;
}

}  // namespace

ModelDifference difference_of_models(const fs::path& one, const fs::path& other) {
  const std::unique_ptr<TensorSource> a = open(one);
  const std::unique_ptr<TensorSource> b = open(other);
  return {differences(*a, *b), strangers(*a, *b)};
}

}  // namespace kvloom
