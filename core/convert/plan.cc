#include "core/convert/plan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "core/checkpoint_manifest.h"
#include "core/convert/plan_limits.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Target = proto::TargetTensor;

// The first few of many names.
std::string first_names(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 6;
  const std::span shown = std::span(names).first(std::min(names.size(), kShown));
  return fmt::format("{}{}", fmt::join(shown, ", "), names.size() > kShown ? ", ..." : "");
}

// What the names that are missing have before them in the source, if that is one thing for all: wrappers of a model
// ("base_model.model.", "language_model.") save it under such names.
std::string prefix_before(const std::vector<std::string>& missing, const TensorSource& source) {
  std::string prefix;
  for (const SourceTensor& tensor : source.tensors()) {
    if (tensor.name.ends_with("." + missing.front()))
      prefix = tensor.name.substr(0, tensor.name.rfind(missing.front()));
  }
  const bool has_all =
      std::ranges::all_of(missing, [&](const std::string& name) { return source.find(prefix + name) != nullptr; });
  return has_all ? prefix : "";
}

void check_inputs(const Target& target) {
  const int count = target.inputs_size();
  const std::string operation = Target::Operation_Name(target.operation());
  if (operation.empty()) {
    reject_input("plan: tensor {}: operation {} is unknown", target.name(), static_cast<int>(target.operation()));
  }
  const bool takes_one = target.operation() == Target::COPY || target.operation() == Target::PAD;
  const bool right = takes_one ? count == 1 : target.operation() == Target::ZERO ? count == 0 : count >= 1;
  if (!right) reject_input("plan: tensor {}: {} does not take {} inputs", target.name(), operation, count);
  if (target.operation() == Target::ZERO && target.dtype().empty()) {
    reject_input("plan: tensor {}: ZERO needs a dtype", target.name());
  }
}

}  // namespace

PlanFit fit_of(const proto::ConversionPlan& plan, const TensorSource& source) {
  PlanFit fit;
  std::unordered_set<std::string> claimed;
  for (const Target& target : plan.tensors()) {
    for (const proto::SourceSlice& slice : target.inputs()) {
      if (claimed.insert(slice.tensor()).second && source.find(slice.tensor()) == nullptr) {
        fit.missing.push_back(slice.tensor());
      }
    }
  }
  for (const proto::LeftOverTensor& tensor : plan.left_over()) {
    if (claimed.insert(tensor.name()).second && source.find(tensor.name()) == nullptr) {
      fit.missing.push_back(tensor.name());
    }
  }
  for (const SourceTensor& tensor : source.tensors()) {
    if (!claimed.contains(tensor.name)) fit.unclaimed.push_back(tensor.name);
  }
  return fit;
}

PlannedConversion::PlannedConversion(proto::ConversionPlan plan, TensorSource& source)
    : plan_(std::move(plan)), source_(source) {
  if (plan_.format() != kPlanFormat) {
    reject_input("plan: format {}; this kvloom applies format {}", plan_.format(), kPlanFormat);
  }
  const PlanFit fit = fit_of(plan_, source_);
  if (!fit.missing.empty()) {
    const std::string prefix = prefix_before(fit.missing, source_);
    if (!prefix.empty()) {
      reject_input(
          "{} has all {} missing tensors ({}) under names that begin with '{}': it was saved from inside another "
          "model; save the language model alone",
          source_.where(), fit.missing.size(), first_names(fit.missing), prefix);
    }
    reject_input("{} lacks {} of the tensors that the conversion takes: {}", source_.where(), fit.missing.size(),
                 first_names(fit.missing));
  }
  if (!fit.unclaimed.empty()) {
    reject_input("{} holds {} tensors of which the conversion would take nothing: {}; name them as left_over in a plan",
                 source_.where(), fit.unclaimed.size(), first_names(fit.unclaimed));
  }
  std::unordered_set<std::string> names;
  for (const Target& target : plan_.tensors()) {
    if (target.name().empty() || !names.insert(target.name()).second) {
      reject_input("plan: tensor '{}' is made twice or has no name", target.name());
    }
    steps_.push_back(resolve(target));
  }
}

PlannedConversion::Input PlannedConversion::resolve_input(const Target& target, const proto::SourceSlice& slice) const {
  const SourceTensor& tensor = *source_.find(slice.tensor());
  const std::size_t axes = tensor.shape.size();
  Input input{&tensor, {shape_of(slice.offset()), shape_of(slice.shape())}, {}, slice.transpose()};
  if (input.slice.offset.empty()) input.slice.offset.assign(axes, 0);
  if (input.slice.shape.empty() && input.slice.offset.size() == axes) {
    for (std::size_t i = 0; i < axes; ++i) input.slice.shape.push_back(tensor.shape[i] - input.slice.offset[i]);
  }
  if (!is_inside(input.slice, tensor.shape)) {
    reject_input("plan: tensor {}: slice {} at {} is not inside {} of shape {}", target.name(),
                 to_string(input.slice.shape), to_string(input.slice.offset), tensor.name, to_string(tensor.shape));
  }
  input.shape = input.slice.shape;
  if (input.transpose) {
    if (axes != 2)
      reject_input("plan: tensor {}: {} has {} axes, no two to transpose", target.name(), tensor.name, axes);
    std::swap(input.shape[0], input.shape[1]);
  }
  if (!tensor.dtype) {
    reject_input("{}: tensor {} is of dtype {}, which kvloom does not compute with", source_.where(), tensor.name,
                 tensor.stored_dtype);
  }
  return input;
}

PlannedConversion::Step PlannedConversion::resolve(const Target& target) {
  check_inputs(target);
  Step step{target.operation(), target.axis(), {}};
  for (const proto::SourceSlice& slice : target.inputs()) step.inputs.push_back(resolve_input(target, slice));
  Shape shape = step.inputs.empty() ? shape_of(target.shape()) : step.inputs[0].shape;
  const DType dtype = target.dtype().empty() ? *step.inputs[0].tensor->dtype : dtype_named(target.dtype());
  if (step.operation == Target::CONCATENATE) {
    if (step.axis >= shape.size()) reject_input("plan: tensor {}: there is no axis {}", target.name(), step.axis);
    shape[step.axis] = 0;
  }
  if (step.operation == Target::PAD) {
    const bool fits = shape.size() == 2 && shape[0] > 0 && target.shape_size() == 2 && target.shape(0) >= shape[0];
    if (!fits) {
      reject_input("plan: tensor {}: PAD makes no {} of {} of shape {}", target.name(),
                   to_string(shape_of(target.shape())), step.inputs[0].tensor->name, to_string(shape));
    }
    shape[0] = target.shape(0);
  }
  for (const Input& input : step.inputs) {
    Shape wanted = shape;
    if (step.operation == Target::PAD) wanted[0] = input.shape[0];
    if (step.operation == Target::CONCATENATE && input.shape.size() == shape.size()) {
      wanted[step.axis] = input.shape[step.axis];
      shape[step.axis] += input.shape[step.axis];
    }
    if (input.shape != wanted) {
      reject_input("plan: tensor {}: {} of shape {} does not go together with {} of shape {}", target.name(),
                   input.tensor->name, to_string(input.shape), step.inputs[0].tensor->name,
                   to_string(step.inputs[0].shape));
    }
    const bool computes = step.operation == Target::AVERAGE || step.operation == Target::PAD;
    if ((computes || *input.tensor->dtype != dtype) && !is_castable(*input.tensor->dtype, dtype)) {
      reject_input("plan: tensor {}: {} is {} and cannot become {}; f32, bf16 and f16 can", target.name(),
                   input.tensor->name, input.tensor->stored_dtype, name_of(dtype));
    }
  }
  if (!checked_element_count(shape))
    reject_input("plan: tensor {}: shape {} makes no sense", target.name(), to_string(shape));
  if (target.shape_size() > 0 && shape_of(target.shape()) != shape) {
    reject_input("plan: tensor {} must be {}; its inputs ({}) make {}", target.name(),
                 to_string(shape_of(target.shape())), step.inputs[0].tensor->name, to_string(shape));
  }
  tensors_.push_back({target.name(), std::move(shape), dtype});
  return step;
}

void PlannedConversion::compute(std::size_t index, const Rectangle& wanted, std::span<std::byte> out) {
  const PlannedTensor& tensor = tensors_.at(index);
  const Step& step = steps_[index];
  if (!is_inside(wanted, tensor.shape) ||
      out.size() != static_cast<std::size_t>(element_count(wanted.shape)) * size_of(tensor.dtype)) {
    fail("conversion: {} bytes for {} at {} of tensor {}", out.size(), to_string(wanted.shape),
         to_string(wanted.offset), tensor.name);
  }
  if (out.empty()) return;
  computing_ = tensor.name;
  switch (step.operation) {
    case Target::CONCATENATE:
      return concatenate(step, wanted, tensor.dtype, out.data());
    case Target::AVERAGE:
      return average(step, wanted, tensor.dtype, out.data());
    case Target::PAD:
      return pad(step, wanted, tensor.dtype, out.data());
    case Target::ZERO:
      std::ranges::fill(out, std::byte{0});
      return;
    default:
      return read_input(step.inputs[0], wanted, tensor.dtype, out.data());
  }
}

// out = a rectangle of the input as the operation sees it, cast to `dtype`.
void PlannedConversion::read_input(const Input& input, const Rectangle& wanted, DType dtype, std::byte* out) {
  const DType stored = *input.tensor->dtype;
  Rectangle from = wanted;
  if (input.transpose) {
    std::swap(from.offset[0], from.offset[1]);
    std::swap(from.shape[0], from.shape[1]);
  }
  for (std::size_t axis = 0; axis < from.offset.size(); ++axis) from.offset[axis] += input.slice.offset[axis];
  const std::int64_t count = element_count(from.shape);
  const std::size_t bytes = static_cast<std::size_t>(count) * size_of(stored);
  if (stored == dtype && !input.transpose) return source_.read(*input.tensor, from, {out, bytes});
  std::vector<std::byte> read(bytes);
  source_.read(*input.tensor, from, read);
  if (input.transpose) {
    std::vector<std::byte> turned(bytes);
    transpose_elements(read.data(), from.shape[0], from.shape[1], size_of(stored), turned.data());
    read = std::move(turned);
  }
  cast(read.data(), stored, out, dtype, count);
}

void PlannedConversion::cast(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype,
                             std::int64_t count) {
  cast_elements(from, from_dtype, to, to_dtype, count);
  const Overflow found = overflow_of(from, from_dtype, to, to_dtype, count);
  if (found.values == 0) return;
  Overflow& all = overflows_[computing_];
  all.values += found.values;
  all.largest = std::max(all.largest, found.largest);
}

void PlannedConversion::concatenate(const Step& step, const Rectangle& wanted, DType dtype, std::byte* out) {
  std::int64_t begin = 0;  // of the input, along the axis
  for (const Input& input : step.inputs) {
    Rectangle held{Shape(input.shape.size(), 0), input.shape};
    held.offset[step.axis] = begin;
    begin += input.shape[step.axis];
    const auto shared = intersection(held, wanted);
    if (!shared) continue;
    Rectangle inside = *shared;
    inside.offset[step.axis] -= held.offset[step.axis];
    std::vector<std::byte> part(static_cast<std::size_t>(element_count(shared->shape)) * size_of(dtype));
    read_input(input, inside, dtype, part.data());
    Rectangle place = *shared;
    for (std::size_t axis = 0; axis < place.offset.size(); ++axis) place.offset[axis] -= wanted.offset[axis];
    place_rectangle(part.data(), place, wanted.shape, size_of(dtype), out);
  }
}

void PlannedConversion::average(const Step& step, const Rectangle& wanted, DType dtype, std::byte* out) {
  const auto count = static_cast<std::size_t>(element_count(wanted.shape));
  std::vector<double> sum(count, 0);
  std::vector<float> values(count);
  for (const Input& input : step.inputs) {
    read_input(input, wanted, DType::kF32, reinterpret_cast<std::byte*>(values.data()));
    for (std::size_t i = 0; i < count; ++i) sum[i] += static_cast<double>(values[i]);
  }
  for (double& value : sum) value /= static_cast<double>(step.inputs.size());
  cast(reinterpret_cast<const std::byte*>(sum.data()), DType::kF64, out, dtype, static_cast<std::int64_t>(count));
}

void PlannedConversion::pad(const Step& step, const Rectangle& wanted, DType dtype, std::byte* out) {
  const Input& input = step.inputs[0];
  const std::int64_t own = std::clamp<std::int64_t>(input.shape[0] - wanted.offset[0], 0, wanted.shape[0]);
  const std::size_t row_bytes = static_cast<std::size_t>(wanted.shape[1]) * size_of(dtype);
  if (own > 0) read_input(input, {wanted.offset, {own, wanted.shape[1]}}, dtype, out);
  if (own == wanted.shape[0]) return;
  const double* mean = mean_row(input).data() + wanted.offset[1];
  for (std::int64_t row = own; row < wanted.shape[0]; ++row) {
    cast(reinterpret_cast<const std::byte*>(mean), DType::kF64, out + static_cast<std::size_t>(row) * row_bytes, dtype,
         wanted.shape[1]);
  }
}

const std::vector<double>& PlannedConversion::mean_row(const Input& input) {
  const auto [known, is_new] = mean_rows_.try_emplace(input.tensor->name);
  if (!is_new) return known->second;
  const std::int64_t columns = input.shape[1];
  std::vector<double>& mean = known->second;
  mean.assign(static_cast<std::size_t>(columns), 0);
  for (const Rectangle& block : blocks_of({{0, 0}, input.shape}, DType::kF32, kBlockBytes)) {
    std::vector<float> values(static_cast<std::size_t>(element_count(block.shape)));
    read_input(input, block, DType::kF32, reinterpret_cast<std::byte*>(values.data()));
    for (std::size_t i = 0; i < values.size(); ++i) mean[i % mean.size()] += static_cast<double>(values[i]);
  }
  for (double& value : mean) value /= static_cast<double>(input.shape[0]);
  return mean;
}

void PlannedConversion::check_left_over() {
  for (const proto::LeftOverTensor& left : plan_.left_over()) {
    if (left.condition() != proto::LeftOverTensor::ZEROS) continue;
    const SourceTensor& tensor = *source_.find(left.name());
    if (!tensor.dtype || !is_castable(*tensor.dtype, DType::kF32)) {
      reject_input("{}: tensor {} must hold zeros alone; it is {}", source_.where(), tensor.name, tensor.stored_dtype);
    }
    for (const Rectangle& block :
         blocks_of({Shape(tensor.shape.size(), 0), tensor.shape}, *tensor.dtype, kBlockBytes)) {
      std::vector<float> values(static_cast<std::size_t>(element_count(block.shape)));
      read_input({&tensor, {Shape(block.offset.size(), 0), tensor.shape}, tensor.shape, false}, block, DType::kF32,
                 reinterpret_cast<std::byte*>(values.data()));
      if (std::ranges::any_of(values, [](float value) { return value != 0; })) {
        reject_input("{}: tensor {} is not zero, and {}", source_.where(), tensor.name, left.reason());
      }
    }
  }
}

}  // namespace kvloom
