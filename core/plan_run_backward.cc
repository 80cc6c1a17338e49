#include "core/plan_run.h"

namespace kvloom {

void PlanRun::backward(const Tensor& tokens, const Tensor& grad_hidden, ModelGradients& gradients) {
  KvGradientStore sums(context_.allocator);
  Tensor grad_output = grad_hidden;  // of the segment being walked
  Tensor grad_input;                 // summed over its passes
  for (std::size_t index = plan_.steps.size(); index-- > 0;) {
    const PlanStep& step = plan_.steps[index];
    if (!step.keeps_gradient) continue;
    // Only the last pass hands hidden states on; the others matter through their K/V alone.
    Tensor gradient = Tensor::empty(context_.allocator, grad_output.shape(), grad_output.dtype());
    if (step.last) {
      ops::copy(grad_output, gradient);
    } else {
      gradient.fill_zero();
    }
    gradient = backward_step(index, std::move(gradient), sums, gradients);
    if (step.last) {
      grad_input = gradient;
    } else {
      ops::add(grad_input, gradient, grad_input);
    }
    const bool leaves_segment =
        index == 0 || plan_.steps[index - 1].segment != step.segment || !plan_.steps[index - 1].keeps_gradient;
    if (leaves_segment) grad_output = grad_input;
    kept_[index].clear();
  }
  if (sums.size() != 0) fail("backward: {} K/V sources were never reached", sums.size());
  ops::embedding_grad(tokens, grad_output, gradients.views.embedding);
}

Tensor PlanRun::backward_step(std::size_t index, Tensor grad_hidden, KvGradientStore& sums, ModelGradients& gradients) {
  const PlanStep& step = plan_.steps[index];
  std::vector<LayerActivations>& kept = kept_[index];
  if (kept.size() != step.layers.size())
    fail("backward: step {} kept nothing; run forward of a kTrain plan first", index);
  for (std::size_t i = step.layers.size(); i-- > 0;) {
    if (options_.recompute == Recompute::kFull) recompute(step.layers[i], kept[i]);
    backward_layer(step.layers[i], kept[i], grad_hidden, sums, gradients);
    kept[i] = {};
  }
  return grad_hidden;
}

void PlanRun::backward_layer(const LayerRun& run, LayerActivations& kept, Tensor& grad_hidden, KvGradientStore& sums,
                             ModelGradients& gradients) {
  const auto layer = static_cast<std::size_t>(run.layer);
  const LayerWeights& weights = model_.weights().layers[layer];
  LayerWeights& weight_gradients = gradients.views.layers[layer];
  Tensor grad_normed;
  if (run.block == BlockWork::kCompute) {
    const std::optional<KvRead> read = read_of(run);
    const int source = context_.config.kv_map.source(run.layer);
    KvGradientSums reader_sums = nullptr;
    if (read.has_value() && carries_gradient(source, run.read_pass)) {
      reader_sums = &sums.add_reader(source, run.read_pass, read->source.key.shape());
    }
    layer_block_backward(context_, run.layer, weights, kept, read, reader_sums, grad_hidden, grad_normed,
                         weight_gradients);
  }
  if (run.key_value == KeyValueWork::kCompute) {
    const int readers = expected_gradient_readers(plan_, context_.config.kv_map, run.layer, run.pass);
    if (readers > 0) {
      layer_key_value_backward(context_, weights, kept, sums.take(run.layer, run.pass, readers), grad_normed,
                               weight_gradients);
    }
  }
  if (grad_normed.defined()) {
    layer_attention_norm_backward(weights, kept, grad_normed, grad_hidden, weight_gradients);
  }
}

void PlanRun::recompute(const LayerRun& run, LayerActivations& kept) const {
  const LayerWeights& weights = model_.weights().layers[static_cast<std::size_t>(run.layer)];
  const Tensor input = kept.input;
  Tensor normed;
  if (run.key_value == KeyValueWork::kCompute || run.attention == AttentionWork::kRead) {
    normed = layer_attention_norm(context_, weights, input, &kept);
  }
  // K/V themselves are in the store; only a key norm needs what came before it.
  if (run.key_value == KeyValueWork::kCompute && weights.key_norm.defined()) {
    layer_key_value(context_, weights, normed, &kept);
  }
  if (run.block == BlockWork::kCompute) {
    layer_block(context_, run.layer, weights, input, normed, read_of(run), &kept);
  }
}

bool PlanRun::carries_gradient(int source, int pass) const {
  return pass >= first_gradient_pass_[static_cast<std::size_t>(source)];
}

}  // namespace kvloom
