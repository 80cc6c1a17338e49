#include "core/head.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "core/ops.h"

namespace kvloom {
namespace {

// Logits of a chunk: large enough for full-speed products, small beside a layer's activations. 32 MiB of them do for
// the CPU. A GPU reads the head and adds to its gradient once a chunk, which 256 MiB make few times.
std::int64_t chunk_rows(std::int64_t rows, std::int64_t vocab, const Device& device) {
  const std::int64_t elements = std::int64_t{device.kind == Device::Kind::kCpu ? 8 : 64} << 20;
  return std::min(rows, std::max<std::int64_t>(64, elements / vocab));
}

// Of the final norm: all rows for the product, and each own row's inverse RMS.
struct Normed {
  Tensor values;
  Tensor inverse_rms;
};

Normed final_norm(const Model& model, const Tensor& hidden, TensorGroup* tensor) {
  Normed normed{Tensor::empty(model.allocator(), hidden.shape(), hidden.dtype()),
                Tensor::empty(model.allocator(), {hidden.size(0)}, DType::kF32)};
  ops::rms_norm(hidden, model.weights().final_norm, model.config().norm_epsilon, normed.values, normed.inverse_rms);
  if (tensor != nullptr) normed.values = tensor->spread(normed.values);
  return normed;
}

void check_targets(std::int64_t rows, const Tensor& targets) {
  if (targets.count() != rows) fail("head: {} targets for {} rows of hidden states", targets.count(), rows);
}

// What the losses of a chunk of rows follow from, over the whole vocabulary. f32 [rows] each.
struct Statistics {
  Tensor maximum;
  Tensor total;
  Tensor target_logit;
};

Statistics statistics_of(const Tensor& logits, const Tensor& targets, std::int64_t first_token, Allocator& allocator,
                         TensorGroup* tensor) {
  const std::int64_t rows = logits.size(0);
  Statistics result{Tensor::empty(allocator, {rows}, DType::kF32), Tensor::empty(allocator, {rows}, DType::kF32),
                    Tensor::empty(allocator, {rows}, DType::kF32)};
  ops::run(logits.device(), CrossEntropyStatistics{.logits = logits.as<float>().data(),
                                                   .targets = targets.as<std::int32_t>().data(),
                                                   .maximum = result.maximum.as<float>().data(),
                                                   .total = result.total.as<float>().data(),
                                                   .target_logit = result.target_logit.as<float>().data(),
                                                   .rows = rows,
                                                   .vocab = logits.size(1),
                                                   .first_token = first_token});
  if (tensor == nullptr) return result;
  Tensor own_maximum = Tensor::empty(allocator, {rows}, DType::kF32);
  ops::copy(result.maximum, own_maximum);
  tensor->maximum(result.maximum);
  ops::run(logits.device(), RescaleTotals{.total = result.total.as<float>().data(),
                                          .from = own_maximum.as<float>().data(),
                                          .to = result.maximum.as<float>().data(),
                                          .rows = rows});
  tensor->sum(result.total);
  tensor->sum(result.target_logit);
  return result;
}

CrossEntropy loss_of(const Tensor& logits, const Tensor& targets, const Statistics& statistics, Tensor& losses,
                     std::int64_t first_token) {
  return {.logits = logits.as<float>().data(),
          .targets = targets.as<std::int32_t>().data(),
          .maximum = statistics.maximum.as<float>().data(),
          .total = statistics.total.as<float>().data(),
          .target_logit = statistics.target_logit.as<float>().data(),
          .loss = losses.as<float>().data(),
          .grad_logits = nullptr,
          .rows = logits.size(0),
          .vocab = logits.size(1),
          .first_token = first_token};
}

// An equal logit of another token does not make a target less likely than it.
void append_scores(const Tensor& losses, const Statistics& statistics, std::vector<TargetScore>& scores) {
  const std::vector<float> loss = losses.values<float>();
  const std::vector<float> maximum = statistics.maximum.values<float>();
  const std::vector<float> target_logit = statistics.target_logit.values<float>();
  for (std::size_t row = 0; row < loss.size(); ++row) {
    scores.push_back({loss[row], target_logit[row] == maximum[row]});
  }
}

// The rows of a chunk at a time: logits of this rank's part of the vocabulary, and the losses they give.
class ChunkedHead {
 public:
  ChunkedHead(const Model& model, const Tensor& hidden, const Tensor& targets, TensorGroup* tensor)
      : model_(model),
        targets_(targets),
        tensor_(tensor),
        normed_(final_norm(model, hidden, tensor)),
        vocab_(model.shard().vocab(model.config())),
        losses_(Tensor::empty(model.allocator(), {normed_.values.size(0)}, DType::kF32)) {
    check_targets(normed_.values.size(0), targets);
    // Of the largest part, so that all tensor ranks cut the rows alike: what they sum must match.
    const std::int64_t ranks = model.shard().tensor_size;
    const std::int64_t largest_part = (model.config().vocab + ranks - 1) / ranks;
    const std::int64_t chunk = chunk_rows(losses_.count(), largest_part, losses_.device());
    buffer_ = Tensor::empty(model.allocator(), {chunk, vocab_.size()}, DType::kF32);
  }

  // Calls on_chunk(begin, end, logits, statistics, loss operation) for every chunk of rows; it runs the operation.
  void each_chunk(const auto& on_chunk) {
    const std::int64_t rows = losses_.count();
    const std::int64_t chunk = buffer_.size(0);
    for (std::int64_t begin = 0; begin < rows; begin += chunk) {
      const std::int64_t end = std::min(rows, begin + chunk);
      Tensor logits = buffer_.rows(0, end - begin);
      const Tensor targets = targets_.reshaped({rows}).rows(begin, end);
      Tensor losses = losses_.rows(begin, end);
      ops::linear(normed_.values.rows(begin, end), model_.weights().head, logits);
      const Statistics statistics = statistics_of(logits, targets, vocab_.begin, model_.allocator(), tensor_);
      on_chunk(begin, end, logits, statistics, loss_of(logits, targets, statistics, losses, vocab_.begin));
    }
  }

  const Normed& normed() const { return normed_; }
  const Tensor& losses() const { return losses_; }

 private:
  const Model& model_;
  const Tensor& targets_;
  TensorGroup* tensor_;
  Normed normed_;
  AxisPart vocab_;
  Tensor losses_;
  Tensor buffer_;
};

}  // namespace

Tensor head_logits(const Model& model, const Tensor& hidden) {
  Tensor logits = Tensor::empty(model.allocator(), {hidden.size(0), model.config().vocab}, DType::kF32);
  ops::linear(final_norm(model, hidden, nullptr).values, model.weights().head, logits);
  return logits;
}

Tensor cross_entropy_losses(const Tensor& logits, const Tensor& targets, Allocator& allocator) {
  check_targets(logits.size(0), targets);
  Tensor losses = Tensor::empty(allocator, {logits.size(0)}, DType::kF32);
  const Statistics statistics = statistics_of(logits, targets, 0, allocator, nullptr);
  ops::run(logits.device(), loss_of(logits, targets, statistics, losses, 0));
  return losses;
}

Tensor head_losses(const Model& model, const Tensor& hidden, const Tensor& targets, TensorGroup* tensor,
                   const LogitsSink& sink) {
  ChunkedHead head(model, hidden, targets, tensor);
  head.each_chunk(
      [&](std::int64_t begin, std::int64_t, const Tensor& logits, const Statistics&, const CrossEntropy& loss) {
        ops::run(logits.device(), loss);
        if (sink) sink(begin, logits);
      });
  return head.losses();
}

double sum_of_losses(const Tensor& losses) {
  const std::vector<float> values = losses.values<float>();
  return std::accumulate(values.begin(), values.end(), 0.0);
}

std::vector<TargetScore> target_scores(const Tensor& logits, const Tensor& targets, Allocator& allocator) {
  check_targets(logits.size(0), targets);
  Tensor losses = Tensor::empty(allocator, {logits.size(0)}, DType::kF32);
  const Statistics statistics = statistics_of(logits, targets, 0, allocator, nullptr);
  ops::run(logits.device(), loss_of(logits, targets, statistics, losses, 0));
  std::vector<TargetScore> scores;
  append_scores(losses, statistics, scores);
  return scores;
}

std::vector<TargetScore> head_target_scores(const Model& model, const Tensor& hidden, const Tensor& targets) {
  ChunkedHead head(model, hidden, targets, nullptr);
  std::vector<TargetScore> scores;
  head.each_chunk([&](std::int64_t begin, std::int64_t end, const Tensor& logits, const Statistics& statistics,
                      const CrossEntropy& loss) {
    ops::run(logits.device(), loss);
    append_scores(head.losses().rows(begin, end), statistics, scores);
  });
  return scores;
}

HeadResult head_loss_and_gradient(const Model& model, const Tensor& hidden, const Tensor& targets, float grad_scale,
                                  ModelGradients& gradients, TensorGroup* tensor) {
  ChunkedHead head(model, hidden, targets, tensor);
  const Normed& normed = head.normed();
  Tensor grad_normed = Tensor::empty(model.allocator(), normed.values.shape(), hidden.dtype());
  head.each_chunk(
      [&](std::int64_t begin, std::int64_t end, const Tensor& logits, const Statistics&, CrossEntropy loss) {
        Tensor grad_logits =
            hidden.dtype() == DType::kF32 ? logits : Tensor::empty(model.allocator(), logits.shape(), hidden.dtype());
        loss.grad_logits = grad_logits.data();
        loss.grad_scale = grad_scale;
        loss.grad_dtype = grad_logits.dtype();
        ops::run(logits.device(), loss);
        ops::linear_grad_weight(grad_logits, normed.values.rows(begin, end), gradients.views.head);
        Tensor grad_input = grad_normed.rows(begin, end);
        ops::linear_grad_input(grad_logits, model.weights().head, grad_input);
      });
  if (tensor != nullptr) grad_normed = tensor->combine(std::move(grad_normed));
  ops::rms_norm_grad(hidden, model.weights().final_norm, normed.inverse_rms, grad_normed, grad_normed,
                     Output::kOverwrite, gradients.views.final_norm);
  return {head.losses(), grad_normed};
}

}  // namespace kvloom
