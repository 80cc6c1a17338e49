// The next token from its logits: a pure function, so that a sequence does not depend on what else is in its batch.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace kvloom {

struct SamplingParameters {
  float temperature = 1;                                   // 0: greedy
  std::int64_t top_k = 0;                                  // 0: all
  float top_p = 1;                                         // 1: all
  float min_p = 0;                                         // 0: all
  float repetition_penalty = 1;                            // 1: none
  float presence_penalty = 0;                              // 0: none
  float frequency_penalty = 0;                             // 0: none
  std::vector<std::pair<std::int32_t, float>> logit_bias;  // (token, what is added to its logit)
  std::uint64_t seed = 0;
};

// Throws InputError naming the field unless temperature >= 0 and finite, top_k >= 0, 0 < top_p <= 1, 0 <= min_p <= 1,
// 0.01 <= repetition_penalty <= 100, presence and frequency penalty within -2 to 2, and every bias within -100 to 100
// (minus infinity bans a token).
void check_sampling(const SamplingParameters& parameters);

// The tokens of a sequence so far.
struct TokenHistory {
  std::span<const std::int32_t> tokens;
  std::size_t prompt = 0;  // so many of the first ones are the prompt
};

// The token chosen at `position` from logits f32 [vocab]. In this order, as vLLM does it:
//
// 0. logit_bias is added; presence_penalty is taken once from the logit of every token that was generated, and
//    frequency_penalty as often as it was;
// 1. repetition penalty (Keskar et al. 2019, section 4.1): the logits of tokens of the history (prompt and output) are
//    divided by it when positive and multiplied by it when negative, once however often the token occurs;
// 2. temperature 0: the largest logit, the lowest id among equals, and nothing of what follows;
// 3. logits / temperature, softmax;
// 4. min-p: tokens less probable than min_p times the most probable go;
// 5. top-k: the k most probable stay, lower ids first among equals;
// 6. top-p: of what is left, renormalised, the smallest set of the most probable that reaches top_p stays;
// 7. one draw from what is left, in the order of ids, by uniform(seed, stream "sampler", position).
//
// Logits of -infinity are never drawn. Throws Error for a logit that is NaN or +infinity, as it came or penalised, when
// none is finite, and for a token of the history or of the bias that is not in the vocabulary.
std::int32_t sample_token(std::span<const float> logits, const TokenHistory& history,
                          const SamplingParameters& parameters, std::uint64_t position);

// The tokens of one sequence, one after the other, sampled where its logits are: on a GPU the logits never cross to the
// host, only the token does. There it is sample_token's in doubles too, but for sums in another order.
class TokenSampler {
 public:
  // After `prompt`, whose tokens are in the vocabulary (Error). Tensors are from `allocator`, which outlives this.
  // Throws InputError for a bias, a presence or a frequency penalty on a GPU, which has none.
  TokenSampler(Allocator& allocator, std::int64_t vocab, const SamplingParameters& parameters,
               std::span<const std::int32_t> prompt);

  // Chooses from logits f32 [1, vocab] of the allocator's device into token i32 [1], there too. On a GPU nothing waits,
  // and the device is given the same work every time, as a StepEnd has to (core/decoder.h).
  void choose(const Tensor& logits, Tensor& token);
  // What `choose` left in `token`, from those logits. Throws Error as sample_token does, if `choose` has not.
  std::int32_t read(const Tensor& logits, const Tensor& token) const;

  struct Choice {
    std::int32_t token;
    Tensor where;  // i32 [1]: the same, where the logits are
  };
  // Both.
  Choice next(const Tensor& logits);

 private:
  Allocator& allocator_;
  std::int64_t vocab_;
  SamplingParameters parameters_;
  std::vector<std::int32_t> history_;
  std::size_t prompt_;
  Tensor row_;   // a SampleRow, on a GPU
  Tensor seen_;  // u8 [vocab], on a GPU
};

}  // namespace kvloom
