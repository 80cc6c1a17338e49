#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "core/ops.h"

namespace kvloom {

AdamWOptimizer::AdamWOptimizer(Model& model, ElementRange range, const proto::TrainConfig& config)
    : model_(model),
      range_(range),
      config_(config),
      momentum_(Tensor::zeros(model.allocator(), {range.size()}, DType::kF32)),
      variance_(Tensor::zeros(model.allocator(), {range.size()}, DType::kF32)) {}

void AdamWOptimizer::step(const Tensor& gradient, double learning_rate, double gradient_scale) {
  ++steps_;
  for (const Parameter& parameter : model_.layout().all()) {
    const std::int64_t begin = std::max(range_.begin, parameter.offset);
    const std::int64_t end = std::min(range_.end, parameter.offset + element_count(parameter.shape));
    if (begin >= end) continue;
    const std::int64_t at = begin - range_.begin;
    ops::run(gradient.device(),
             AdamW{.weight = model_.master().as<float>().data() + begin,
                   .momentum = momentum_.as<float>().data() + at,
                   .variance = variance_.as<float>().data() + at,
                   .gradient = gradient.as<float>().data() + begin,
                   .copy = model_.rounded().defined() ? model_.rounded().as<BFloat16>().data() + begin : nullptr,
                   .count = end - begin,
                   .step = steps_,
                   .learning_rate = static_cast<float>(learning_rate),
                   .beta1 = static_cast<float>(config_.beta1()),
                   .beta2 = static_cast<float>(config_.beta2()),
                   .epsilon = static_cast<float>(config_.epsilon()),
                   .weight_decay = parameter.decay == Decay::kYes ? static_cast<float>(config_.weight_decay()) : 0.0f,
                   .gradient_scale = static_cast<float>(gradient_scale)});
  }
}

double gradient_norm(const Tensor& gradient) {
  double sum = 0;
  ops::run(gradient.device(), SumOfSquares{gradient.as<float>().data(), gradient.count(), &sum});
  return std::sqrt(sum);
}

double clip_scale(double norm, double clip) { return clip > 0 && norm > clip ? clip / norm : 1.0; }

}  // namespace kvloom
