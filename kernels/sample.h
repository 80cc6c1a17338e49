// The next token of each sequence from its logits, chosen where they are: what infer/sampler.h says, step by step.
#pragma once

#include <cstdint>

namespace kvloom {

// What one sequence asks for, and where it stands. Ranges as infer/sampler.h has them.
struct SampleRow {
  std::uint64_t seed = 0;
  std::uint64_t position = 0;  // += 1 by every draw
  std::int64_t top_k = 0;      // 0: all
  float temperature = 1;       // 0: greedy
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
};

// tokens (=) [rows]: each row's choice by uniform(seed, stream "sampler", position). Instead of one, -1 - i where logit
// i, the first such, is NaN or +infinity, and -1 - vocab where none is finite; then nothing else of the row changes.
struct SampleTokens {
  const float* logits;  // [rows, vocab]
  SampleRow* choices;   // [rows]
  std::uint8_t* seen;   // [rows, vocab]: 1 for tokens of the sequence so far, else 0; (=) 1 for the chosen one
  std::int32_t* tokens;
  std::int64_t rows;
  std::int64_t vocab;
};

namespace cuda {
class Queue;
void run(const SampleTokens& op, Queue& queue);
}  // namespace cuda

}  // namespace kvloom
