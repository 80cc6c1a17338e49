#include <utility>

#include "core/plan_run.h"

namespace kvloom {

void PlanRun::backward(const Tensor& tokens, const Tensor& grad_hidden, ModelGradients& gradients) {
  Tensor grad_output;  // of the segment being walked
  Tensor grad_input = Tensor::empty(context_.allocator, grad_hidden.shape(), grad_hidden.dtype());
  ops::copy(grad_hidden, grad_input);
  for (std::size_t index = plan_.steps.size(); index-- > 0;) {
    const PlanStep& step = plan_.steps[index];
    if (!step.keeps_gradient) continue;
    const RunRange range{index, 0, step.layers.size()};
    // Only the last pass hands hidden states on; the others matter through their K/V alone.
    if (step.last) {
      grad_output = std::move(grad_input);
      grad_input = backward_runs(range, std::move(grad_output), gradients);
    } else {
      ops::add(grad_input, backward_runs(range, Tensor(), gradients), grad_input);
    }
  }
  if (kv_gradients_.size() != 0) fail("backward: {} K/V sources were never reached", kv_gradients_.size());
  embed_backward(tokens, grad_input, gradients);
}

void PlanRun::embed_backward(const Tensor& tokens, const Tensor& grad_hidden, ModelGradients& gradients) const {
  const Tensor gradient = context_.tensor == nullptr ? grad_hidden : context_.tensor->spread(grad_hidden);
  ops::embedding_grad(tokens, gradient, context_.shard.vocab(context_.config).begin, gradients.views.embedding);
}

Tensor PlanRun::backward_runs(const RunRange& range, Tensor grad_hidden, ModelGradients& gradients) {
  const PlanStep& step = plan_.steps[range.step];
  std::vector<LayerActivations>& kept = kept_[range.step];
  if (kept.size() != step.layers.size()) {
    fail("backward: step {} kept nothing; run forward of a kTrain plan first", range.step);
  }
  if (!grad_hidden.defined()) {
    grad_hidden = Tensor::zeros(context_.allocator, {context_.own_rows(), context_.config.hidden}, context_.dtype);
  }
  for (std::size_t i = range.end; i-- > range.first;) {
    if (options_.recompute == Recompute::kFull) recompute(step.layers[i], kept[i]);
    backward_layer(step.layers[i], kept[i], grad_hidden, gradients);
    kept[i] = {};
    if (options_.after_backward) options_.after_backward(step.layers[i].layer);
  }
  return grad_hidden;
}

void PlanRun::backward_layer(const LayerRun& run, LayerActivations& kept, Tensor& grad_hidden,
                             ModelGradients& gradients) {
  const auto layer = static_cast<std::size_t>(run.layer);
  const LayerWeights& weights = model_.weights().layers[layer];
  LayerWeights& weight_gradients = gradients.views.layers[layer];
  Tensor normed;
  if (run.needs_norm()) normed = layer_normed_input(context_, weights, kept);
  Tensor grad_normed;
  LateWeightGradients late;
  if (run.block == BlockWork::kCompute) {
    const std::optional<KvRead> read = read_of(run);
    KvGradientSums sums = read.has_value() ? reader_sums(run, read->source.key.shape()) : std::nullopt;
    layer_block_backward(context_, run.layer, weights, kept, normed, read, std::move(sums), grad_hidden, grad_normed,
                         weight_gradients, late);
  }
  for (const KvPart part : kKvParts) {
    if (!run.computes(part)) continue;
    const int readers = expected_gradient_readers(plan_, context_.config.kv_map, part, run.layer, run.pass);
    if (readers == 0) continue;
    layer_key_value_backward(context_, weights, part, kept, normed,
                             kv_gradients_.take({part, run.layer, run.pass}, readers), grad_normed, weight_gradients,
                             late);
  }
  if (grad_normed.defined()) {
    layer_attention_norm_backward(context_, weights, kept, std::move(grad_normed), grad_hidden, weight_gradients, late);
  }
}

void PlanRun::recompute(const LayerRun& run, LayerActivations& kept) const {
  const LayerWeights& weights = model_.weights().layers[static_cast<std::size_t>(run.layer)];
  const Tensor input = kept.input;
  Tensor normed;
  if (run.needs_norm()) normed = layer_attention_norm(context_, weights, input, &kept);
  // K/V themselves are in the store; only a key norm needs what came before it.
  if (run.computes(KvPart::kKey) && weights.key_norm.defined()) {
    layer_key_value(context_, weights, KvPart::kKey, normed, &kept);
  }
  if (run.block == BlockWork::kCompute) {
    layer_block(context_, run.layer, weights, input, normed, read_of(run), &kept);
  }
}

// The attention's backward gives dK and dV together: of one that is constant, its share goes nowhere.
KvGradientSums PlanRun::reader_sums(const LayerRun& run, const Shape& shape) {
  const ByPart<KvName> names{read_name(KvPart::kKey, run), read_name(KvPart::kValue, run)};
  if (!carries_gradient(names.key) && !carries_gradient(names.value)) return std::nullopt;
  KeyValue sums;
  for (const KvPart part : kKvParts) {
    sums[part] = carries_gradient(names[part]) ? kv_gradients_.add_reader(names[part], shape)
                                               : Tensor::zeros(context_.allocator, shape, DType::kF32);
  }
  return sums;
}

bool PlanRun::carries_gradient(const KvName& name) const {
  return name.pass >= first_gradient_pass_[static_cast<std::size_t>(name.source)];
}

}  // namespace kvloom
