#include "core/head.h"

#include <algorithm>
#include <numeric>

#include "core/ops.h"

namespace kvloom {
namespace {

// 32 MiB of logits a chunk: large enough for full-speed products, small beside a layer's activations.
constexpr std::int64_t kChunkElements = std::int64_t{8} << 20;

std::int64_t chunk_rows(std::int64_t rows, std::int64_t vocab) {
  return std::min(rows, std::max<std::int64_t>(64, kChunkElements / vocab));
}

struct Normed {
  Tensor values;
  Tensor inverse_rms;
};

Normed final_norm(const Model& model, const Tensor& hidden) {
  Normed normed{Tensor::empty(model.allocator(), hidden.shape(), hidden.dtype()),
                Tensor::empty(model.allocator(), {hidden.size(0)}, DType::kF32)};
  ops::rms_norm(hidden, model.weights().final_norm, model.config().norm_epsilon, normed.values, normed.inverse_rms);
  return normed;
}

void check_targets(const Tensor& hidden, const Tensor& targets) {
  if (targets.count() != hidden.size(0)) {
    fail("head: {} targets for hidden states {}", targets.count(), to_string(hidden.shape()));
  }
}

}  // namespace

Tensor head_logits(const Model& model, const Tensor& hidden) {
  Tensor logits = Tensor::empty(model.allocator(), {hidden.size(0), model.config().vocab}, DType::kF32);
  ops::linear(final_norm(model, hidden).values, model.weights().head, logits);
  return logits;
}

Tensor cross_entropy_losses(const Tensor& logits, const Tensor& targets, Allocator& allocator) {
  check_targets(logits, targets);
  Tensor losses = Tensor::empty(allocator, {logits.size(0)}, DType::kF32);
  ops::run(logits.device(), CrossEntropy{.logits = logits.as<float>().data(),
                                         .targets = targets.as<std::int32_t>().data(),
                                         .loss = losses.as<float>().data(),
                                         .grad_logits = nullptr,
                                         .rows = logits.size(0),
                                         .vocab = logits.size(1)});
  return losses;
}

Tensor head_losses(const Model& model, const Tensor& hidden, const Tensor& targets) {
  check_targets(hidden, targets);
  const std::int64_t vocab = model.config().vocab;
  const std::int64_t rows = hidden.size(0);
  const std::int64_t chunk = chunk_rows(rows, vocab);
  const Normed normed = final_norm(model, hidden);
  Tensor losses = Tensor::empty(model.allocator(), {rows}, DType::kF32);
  Tensor buffer = Tensor::empty(model.allocator(), {chunk, vocab}, DType::kF32);
  for (std::int64_t begin = 0; begin < rows; begin += chunk) {
    const std::int64_t end = std::min(rows, begin + chunk);
    Tensor logits = buffer.rows(0, end - begin);
    ops::linear(normed.values.rows(begin, end), model.weights().head, logits);
    ops::run(hidden.device(), CrossEntropy{.logits = logits.as<float>().data(),
                                           .targets = targets.as<std::int32_t>().data() + begin,
                                           .loss = losses.as<float>().data() + begin,
                                           .grad_logits = nullptr,
                                           .rows = end - begin,
                                           .vocab = vocab});
  }
  return losses;
}

HeadResult head_loss_and_gradient(const Model& model, const Tensor& hidden, const Tensor& targets, float grad_scale,
                                  ModelGradients& gradients) {
  check_targets(hidden, targets);
  const std::int64_t vocab = model.config().vocab;
  const std::int64_t rows = hidden.size(0);
  const std::int64_t chunk = chunk_rows(rows, vocab);
  Allocator& allocator = model.allocator();
  Normed normed = final_norm(model, hidden);
  Tensor losses = Tensor::empty(allocator, {rows}, DType::kF32);
  Tensor logits_buffer = Tensor::empty(allocator, {chunk, vocab}, DType::kF32);
  Tensor grad_buffer =
      hidden.dtype() == DType::kF32 ? logits_buffer : Tensor::empty(allocator, {chunk, vocab}, hidden.dtype());
  Tensor grad_normed = Tensor::empty(allocator, hidden.shape(), hidden.dtype());
  for (std::int64_t begin = 0; begin < rows; begin += chunk) {
    const std::int64_t end = std::min(rows, begin + chunk);
    const Tensor input = normed.values.rows(begin, end);
    Tensor logits = logits_buffer.rows(0, end - begin);
    Tensor grad_logits = grad_buffer.rows(0, end - begin);
    ops::linear(input, model.weights().head, logits);
    ops::run(hidden.device(), CrossEntropy{.logits = logits.as<float>().data(),
                                           .targets = targets.as<std::int32_t>().data() + begin,
                                           .loss = losses.as<float>().data() + begin,
                                           .grad_logits = grad_logits.data(),
                                           .rows = end - begin,
                                           .vocab = vocab,
                                           .grad_scale = grad_scale,
                                           .grad_dtype = grad_logits.dtype()});
    ops::linear_grad_weight(grad_logits, input, gradients.views.head);
    Tensor grad_input = grad_normed.rows(begin, end);
    ops::linear_grad_input(grad_logits, model.weights().head, grad_input);
  }
  ops::rms_norm_grad(hidden, model.weights().final_norm, normed.inverse_rms, grad_normed, grad_normed,
                     Output::kOverwrite, gradients.views.final_norm);
  const auto values = losses.as<float>();
  return {std::accumulate(values.begin(), values.end(), 0.0), grad_normed};
}

}  // namespace kvloom
