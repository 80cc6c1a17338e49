// Softmax cross entropy over one chunk of logits.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/dtype.h"

namespace kvloom {

inline constexpr std::int32_t kIgnoredTarget = -1;  // such a row has loss 0 and gradient 0

// loss[r] = log(sum_v exp(logits[r, v])) - logits[r, targets[r]], in nats (f32).
// grad_logits[r, v] = (softmax(logits[r])[v] - [v == targets[r]]) * grad_scale; of grad_dtype, may be null (loss only),
// may be logits itself when grad_dtype is f32. logits f32 [rows, vocab], dense.
struct CrossEntropy {
  const float* logits;
  const std::int32_t* targets;
  float* loss;
  void* grad_logits;
  std::int64_t rows;
  std::int64_t vocab;
  float grad_scale = 1.0f;
  DType grad_dtype = DType::kF32;
};

namespace cpu {
void run(const CrossEntropy& op);
}  // namespace cpu

}  // namespace kvloom
