#include "core/convert/model_weights.h"

#include <algorithm>

#include "core/convert/plan_limits.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

void load_weight(PlannedConversion& conversion, std::size_t index, Tensor values) {
  const PlannedTensor& planned = conversion.tensors()[index];
  auto* out = reinterpret_cast<std::byte*>(values.as<float>().data());
  std::vector<std::byte> bytes;
  for (const Rectangle& block :
       blocks_of({Shape(planned.shape.size(), 0), planned.shape}, planned.dtype, kBlockBytes)) {
    const std::int64_t count = element_count(block.shape);
    bytes.resize(static_cast<std::size_t>(count) * size_of(planned.dtype));
    conversion.compute(index, block, bytes);
    cast_elements(bytes.data(), planned.dtype, out, DType::kF32, count);
    out += static_cast<std::size_t>(count) * sizeof(float);
  }
}

}  // namespace

void load_weights(PlannedConversion& conversion, Model& model) {
  for (const Parameter& parameter : model.layout().all()) {
    const auto found = std::ranges::find(conversion.tensors(), parameter.name, &PlannedTensor::name);
    if (found == conversion.tensors().end() || found->shape != parameter.shape) {
      reject_input("the conversion makes no tensor {} of shape {}", parameter.name, to_string(parameter.shape));
    }
    load_weight(conversion, static_cast<std::size_t>(found - conversion.tensors().begin()),
                model.master().view(parameter.offset, parameter.shape));
  }
  model.refresh();
}

}  // namespace kvloom
