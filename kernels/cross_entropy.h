// Softmax cross entropy over one chunk of logits, f32 [rows, vocab], dense: of a whole vocabulary, or of tokens
// [first_token, first_token + vocab) of one that ranks share. Statistics of the shards are joined before the loss:
// the maximum over shards of `maximum`; `total` rescaled to it and summed; `target_logit` summed.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvloom {

inline constexpr std::int32_t kIgnoredTarget = -1;  // such a row has loss 0 and gradient 0

// maximum[r] = max_v logits[r, v]; total[r] = sum_v exp(logits[r, v] - maximum[r]); target_logit[r] = the target's
// logit, 0 when it is ignored or in another shard. f32 [rows] each. Logits may be -infinity: a shard of which all are
// has total 0. maximum passes over NaN, total does not.
struct CrossEntropyStatistics {
  const float* logits;
  const std::int32_t* targets;
  float* maximum;
  float* total;
  float* target_logit;
  std::int64_t rows;
  std::int64_t vocab;
  std::int64_t first_token = 0;
};

// total[r] *= exp(from[r] - to[r]): sums of exponentials below one maximum become sums below another.
struct RescaleTotals {
  float* total;
  const float* from;
  const float* to;
  std::int64_t rows;
};

// loss[r] = log(total[r]) - (target_logit[r] - maximum[r]), in nats (f32).
// grad_logits[r, v] = (exp(logits[r, v] - maximum[r]) / total[r] - [v is the target]) * grad_scale; of grad_dtype, may
// be null (loss only: logits are not looked at), may be logits itself when grad_dtype is f32.
struct CrossEntropy {
  const float* logits;
  const std::int32_t* targets;
  const float* maximum;
  const float* total;
  const float* target_logit;
  float* loss;
  void* grad_logits;
  std::int64_t rows;
  std::int64_t vocab;
  std::int64_t first_token = 0;
  float grad_scale = 1.0f;
  DType grad_dtype = DType::kF32;
};

namespace cpu {
void run(const CrossEntropyStatistics& op);
void run(const RescaleTotals& op);
void run(const CrossEntropy& op);
}  // namespace cpu

namespace cuda {
class Queue;
void run(const CrossEntropyStatistics& op, Queue& queue);
void run(const RescaleTotals& op, Queue& queue);
void run(const CrossEntropy& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
