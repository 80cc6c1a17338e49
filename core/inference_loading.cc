// Where an inference model's weights come from: a checkpoint, a Hugging Face folder, or a seed. A block of rows at a
// time is in memory beside the model.
#include <algorithm>
#include <functional>

#include "core/convert/plan.h"
#include "core/convert/plan_limits.h"
#include "core/convert/plan_models.h"
#include "core/inference_model.h"

namespace kvloom {
namespace {

Shape rows_of(const Parameter& parameter, std::int64_t rows) {
  Shape shape = parameter.shape;
  shape[0] = rows;
  return shape;
}

// Calls visit(first row, rows) for blocks of the parameter's rows, of kBlockBytes at most in `dtype`, or of one row.
void each_block(const Parameter& parameter, DType dtype, const std::function<void(std::int64_t, std::int64_t)>& visit) {
  const Rectangle whole{Shape(parameter.shape.size(), 0), parameter.shape};
  for (const Rectangle& block : blocks_of(whole, dtype, kBlockBytes)) visit(block.offset[0], block.shape[0]);
}

class Loader {
 public:
  Loader(PlannedConversion& conversion, InferenceModel& model) : conversion_(conversion), model_(model) {}

  void load() {
    for (const Parameter& parameter : model_.layout().all()) load(parameter);
  }

 private:
  void load(const Parameter& parameter) {
    const auto found = std::ranges::find(conversion_.tensors(), parameter.name, &PlannedTensor::name);
    if (found == conversion_.tensors().end() || found->shape != parameter.global_shape) {
      reject_input("the model's folder has no tensor {} of shape {}", parameter.name,
                   to_string(parameter.global_shape));
    }
    each_block(parameter, found->dtype, [&](std::int64_t first, std::int64_t rows) {
      Rectangle block{parameter.global_offset, rows_of(parameter, rows)};
      block.offset[0] += first;
      model_.put(parameter, first, read(*found, block));
    });
  }

  // The block in f32 or bf16; vectors in f32.
  Tensor read(const PlannedTensor& planned, const Rectangle& block) {
    Tensor stored = Tensor::empty(model_.allocator(), block.shape, planned.dtype);
    const auto index = static_cast<std::size_t>(&planned - conversion_.tensors().data());
    conversion_.compute(index, block, {static_cast<std::byte*>(stored.data()), stored.bytes()});
    const bool as_stored = planned.dtype == DType::kF32 || (planned.dtype == DType::kBF16 && block.shape.size() == 2);
    if (as_stored) return stored;
    Tensor wide = Tensor::empty(model_.allocator(), block.shape, DType::kF32);
    cast_elements(static_cast<const std::byte*>(stored.data()), planned.dtype, static_cast<std::byte*>(wide.data()),
                  DType::kF32, wide.count());
    return wide;
  }

  PlannedConversion& conversion_;
  InferenceModel& model_;
};

}  // namespace

LoadedInferenceModel load_inference_model(const std::string& path, InferenceFormat format, Allocator& allocator,
                                          const ShardOf& shard_of) {
  const ModelSource source = open_model_source(path);
  const TargetModel target{.form = ModelForm::kCheckpoint, .model = source.model, .passes = source.passes};
  PlannedConversion conversion(plan_conversion(source, target), *source.tensors);
  check_model_tensors(conversion.tensors(), target);
  conversion.check_left_over();
  LoadedInferenceModel loaded{std::make_unique<InferenceModel>(source.model, shard_of(source.model), format, allocator),
                              checkpoint_manifest(source, target)};
  Loader(conversion, *loaded.model).load();
  return loaded;
}

void initialize(InferenceModel& model, std::uint64_t seed) {
  for (const Parameter& parameter : model.layout().all()) {
    each_block(parameter, DType::kF32, [&](std::int64_t first, std::int64_t rows) {
      Tensor values = Tensor::empty(model.allocator(), rows_of(parameter, rows), DType::kF32);
      fill_starting_values(parameter, seed, first, values.as<float>());
      model.put(parameter, first, values);
    });
  }
}

}  // namespace kvloom
