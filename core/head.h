// Final norm, output projection and loss, fused over chunks of rows: [rows, vocab] logits are never whole in training.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/model.h"
#include "core/tensor.h"
#include "core/tensor_group.h"

namespace kvloom {

// Logits f32 [rows, vocab] of hidden states [rows, hidden]. For the few rows of decode and for tests.
Tensor head_logits(const Model& model, const Tensor& hidden);

// Losses in nats, f32 [rows], of logits f32 [rows, vocab]; targets i32 [rows].
Tensor cross_entropy_losses(const Tensor& logits, const Tensor& targets, Allocator& allocator);

// Takes logits f32 [n, vocab] of rows [first, first + n), which are overwritten once it returns.
using LogitsSink = std::function<void(std::int64_t first, const Tensor& logits)>;

// Losses in nats, f32 [rows]; targets i32 [rows], kIgnoredTarget gives 0. With `tensor` ranks share the vocabulary:
// hidden has each rank's own rows, targets and losses have all. A sink gets every row once, of this rank's part of the
// vocabulary.
Tensor head_losses(const Model& model, const Tensor& hidden, const Tensor& targets, TensorGroup* tensor = nullptr,
                   const LogitsSink& sink = nullptr);

// Of all rows. The host waits for the device.
double sum_of_losses(const Tensor& losses);

// Of each row: the target's loss in nats, and whether no logit is larger than its own.
struct TargetScore {
  float loss;
  bool greedy;
};

// Those of logits f32 [rows, vocab], and of hidden states [rows, hidden] whose logits are never whole; targets i32
// [rows], of the vocabulary.
std::vector<TargetScore> target_scores(const Tensor& logits, const Tensor& targets, Allocator& allocator);
std::vector<TargetScore> head_target_scores(const Model& model, const Tensor& hidden, const Tensor& targets);

struct HeadResult {
  Tensor losses;       // as head_losses gives them; not read yet, so that the host need not wait for the device here
  Tensor grad_hidden;  // shape of hidden, of grad_scale times the sum
};

// Also adds the gradients of final norm and head to `gradients` (+=).
HeadResult head_loss_and_gradient(const Model& model, const Tensor& hidden, const Tensor& targets, float grad_scale,
                                  ModelGradients& gradients, TensorGroup* tensor = nullptr);

}  // namespace kvloom
