#include "core/layer.h"

#include <memory>
#include <utility>

namespace kvloom {
namespace {

Tensor like(const LayerContext& context, const Tensor& tensor) {
  return Tensor::empty(context.allocator, tensor.shape(), tensor.dtype());
}

// Backward of project_and_rotate (layer.cc), from the gradient of its result, which is overwritten.
struct Projection {
  const Tensor& weight;
  const Tensor& norm;
  const Tensor& raw;
  const Tensor& inverse_rms;
};
struct ProjectionGradients {
  Tensor& weight;
  Tensor& bias;
  Tensor& norm;
};

void projection_backward(const Projection& projection, const Tensor& normed, Tensor& gradient, Tensor& grad_normed,
                         Output mode, ProjectionGradients gradients, LateWeightGradients& late) {
  if (projection.norm.defined()) {
    ops::rms_norm_grad(projection.raw, projection.norm, projection.inverse_rms, gradient, gradient, Output::kOverwrite,
                       gradients.norm);
  }
  late.add(gradient, normed, gradients.weight, gradients.bias);
  ops::linear_grad_input(gradient, projection.weight, grad_normed, mode);
}

Tensor all_rows(const LayerContext& context, const Tensor& own) {
  return context.tensor == nullptr ? own : context.tensor->spread(own);
}

// Backward of entering a region: this rank's share of the gradient becomes the whole of its own rows, once finished.
class WholeOfOwnRows {
 public:
  WholeOfOwnRows(const LayerContext& context, Tensor share) {
    if (context.tensor == nullptr) {
      whole_ = std::move(share);
    } else {
      under_way_ = context.tensor->start_combine(std::move(share));
    }
  }

  Tensor finish() { return under_way_ == nullptr ? std::move(whole_) : under_way_->finish(); }

 private:
  Tensor whole_;
  std::unique_ptr<Combining> under_way_;
};

void feed_forward_backward(const LayerContext& context, const LayerWeights& weights, const LayerActivations& kept,
                           Tensor& grad_hidden, LayerWeights& gradients) {
  const Tensor grad_output = all_rows(context, grad_hidden);
  Tensor activation = Tensor::empty(context.allocator, {context.rows(), weights.down.size(1)}, context.dtype);
  ops::swiglu(kept.gate_up, activation);
  ops::linear_grad_weight(grad_output, activation, gradients.down);
  Tensor& grad_activation = activation;  // its values are not needed any more
  ops::linear_grad_input(grad_output, weights.down, grad_activation);
  Tensor grad_gate_up = like(context, kept.gate_up);
  ops::swiglu_grad(kept.gate_up, grad_activation, grad_gate_up);

  Tensor own_normed = like(context, kept.middle);
  Tensor unused;
  ops::rms_norm(kept.middle, weights.ffn_norm, context.config.norm_epsilon, own_normed, unused);
  const Tensor normed = all_rows(context, own_normed);
  Tensor share = like(context, normed);
  ops::linear_grad_input(grad_gate_up, weights.gate_up, share);
  WholeOfOwnRows whole(context, std::move(share));
  ops::linear_grad_weight(grad_gate_up, normed, gradients.gate_up);
  const Tensor grad_normed = whole.finish();
  ops::rms_norm_grad(kept.middle, weights.ffn_norm, kept.ffn_inverse_rms, grad_normed, grad_hidden, Output::kAccumulate,
                     gradients.ffn_norm);
}

}  // namespace

void LateWeightGradients::compute() {
  for (Product& product : products_) {
    ops::linear_grad_weight(product.grad_output, product.input, product.grad_weight, product.grad_bias);
  }
  products_.clear();
}

void layer_block_backward(const LayerContext& context, int layer, const LayerWeights& weights,
                          const LayerActivations& kept, const Tensor& normed, const std::optional<KvRead>& read,
                          KvGradientSums sums, Tensor& grad_hidden, Tensor& grad_normed, LayerWeights& gradients,
                          LateWeightGradients& late) {
  feed_forward_backward(context, weights, kept, grad_hidden, gradients);
  if (!read.has_value() || read->keys == 0) return;

  const Tensor grad_middle = all_rows(context, grad_hidden);
  ops::linear_grad_weight(grad_middle, kept.attention, gradients.output);
  Tensor grad_attention = like(context, kept.attention);
  ops::linear_grad_input(grad_middle, weights.output, grad_attention);
  Tensor grad_query = like(context, kept.query);
  ops::run(grad_hidden.device(),
           AttentionBackward{.shape = attention_shape(context, layer, read->keys, read->source.key.size(1)),
                             .query = kept.query.data(),
                             .key = read->source.key.data(),
                             .value = read->source.value.data(),
                             .output = kept.attention.data(),
                             .log_sum_exp = kept.log_sum_exp.as<float>().data(),
                             .grad_output = grad_attention.data(),
                             .grad_query = grad_query.data(),
                             .grad_query_stride = grad_query.size(1),
                             .grad_key = sums ? sums->key.as<float>().data() : nullptr,
                             .grad_value = sums ? sums->value.as<float>().data() : nullptr});
  ops::rope(grad_query, context.rope.cosine, context.rope.sine, context.row_positions(), Rotation::kBackward);
  grad_normed = like(context, normed);
  projection_backward({weights.query, weights.query_norm, kept.query_raw, kept.query_inverse_rms}, normed, grad_query,
                      grad_normed, Output::kOverwrite, {gradients.query, gradients.query_bias, gradients.query_norm},
                      late);
}

void layer_key_value_backward(const LayerContext& context, const LayerWeights& weights, KvPart part,
                              const LayerActivations& kept, const Tensor& normed, const Tensor& gradient,
                              Tensor& grad_normed, LayerWeights& gradients, LateWeightGradients& late) {
  const Output mode = grad_normed.defined() ? Output::kAccumulate : Output::kOverwrite;
  if (!grad_normed.defined()) grad_normed = like(context, normed);
  Tensor own = Tensor::empty(context.allocator, {context.rows(), gradient.size(2)}, context.dtype);
  ops::copy(gradient, own);
  if (part == KvPart::kKey) {
    ops::rope(own, context.rope.cosine, context.rope.sine, context.row_positions(), Rotation::kBackward);
    projection_backward({weights.key, weights.key_norm, kept.key_raw, kept.key_inverse_rms}, normed, own, grad_normed,
                        mode, {gradients.key, gradients.key_bias, gradients.key_norm}, late);
  } else {
    const Tensor no_norm;
    Tensor no_gradient;
    projection_backward({weights.value, no_norm, no_norm, no_norm}, normed, own, grad_normed, mode,
                        {gradients.value, gradients.value_bias, no_gradient}, late);
  }
}

void layer_attention_norm_backward(const LayerContext& context, const LayerWeights& weights,
                                   const LayerActivations& kept, Tensor grad_normed, Tensor& grad_hidden,
                                   LayerWeights& gradients, LateWeightGradients& late) {
  WholeOfOwnRows whole(context, std::move(grad_normed));
  late.compute();
  const Tensor gradient = whole.finish();
  ops::rms_norm_grad(kept.input, weights.attention_norm, kept.attention_inverse_rms, gradient, grad_hidden,
                     Output::kAccumulate, gradients.attention_norm);
}

}  // namespace kvloom
