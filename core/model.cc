#include "core/model.h"

#include <utility>

#include "core/ops.h"

namespace kvloom {

Model::Model(ModelConfig config, DType compute, Allocator& allocator)
    : Model(config, ModelShard::whole(config), compute, allocator) {}

Model::Model(ModelConfig config, ModelShard shard, DType compute, Allocator& allocator)
    : config_(std::move(config)),
      shard_(std::move(shard)),
      dtype_(compute),
      allocator_(allocator),
      layout_(config_, shard_) {
  if (compute != DType::kF32 && compute != DType::kBF16)
    fail("model: computes in f32 or bf16, not {}", name_of(compute));
  master_ = Tensor::empty(allocator, {layout_.count()}, DType::kF32);
  if (compute == DType::kBF16) rounded_ = Tensor::empty(allocator, {layout_.count()}, DType::kBF16);
  weights_ = view_weights(config_, layout_, rounded_.defined() ? rounded_ : master_, master_);
}

void Model::initialize(std::uint64_t seed) {
  initialize_parameters(layout_, seed, master_);
  refresh();
}

void Model::refresh() {
  if (rounded_.defined()) ops::copy(master_, rounded_);
}

ModelGradients::ModelGradients(const Model& model)
    : flat(Tensor::zeros(model.allocator(), {model.layout().count()}, DType::kF32)),
      views(view_weights(model.config(), model.layout(), flat, flat)) {}

}  // namespace kvloom
