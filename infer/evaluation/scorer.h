// What evaluation asks of a model: how likely given tokens are behind the positions of whole texts.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/head.h"
#include "core/inference_model.h"
#include "core/iteration_plan.h"
#include "core/model.h"
#include "kernels/ragged_attention.h"

namespace kvloom {

enum class ScoringForm : std::uint8_t {
  kParallel,    // iterated passes (DESIGN 5)
  kSequential,  // token by token, as decoding computes
};

struct ScoringOptions {
  ScoringForm form = ScoringForm::kParallel;
  Passes passes;
};

// A token that may stand behind a position of a text.
struct Target {
  std::int64_t position;
  std::int32_t token;
};

// Tokens that the model reads from position 0 on, one or more, and what is asked behind them, in any order; several
// targets may ask behind one position.
struct ScoredText {
  std::span<const std::int32_t> tokens;
  std::vector<Target> targets;
};

class Scorer {
 public:
  virtual ~Scorer() = default;

  virtual const ModelConfig& config() const = 0;
  // What weights, hidden states and K/V are rounded to, such as "bf16" or "bf16, weights int8, K/V int8".
  virtual std::string format() const = 0;
  // Each target's score, text by text. Texts are computed together; with passes, each segment takes as many as the
  // longest text needs at most.
  virtual std::vector<TargetScore> score(std::span<const ScoredText> texts, const ScoringOptions& options) const = 0;
};

// Of a model as inference holds it: weights packed once, K and V in pages of `kv_format`. On CPUs. The model outlives
// it.
std::unique_ptr<Scorer> make_scorer(const InferenceModel& model, KvFormat kv_format);

// Of a model as training holds it, on any device. The model outlives it.
std::unique_ptr<Scorer> make_scorer(const Model& model);

}  // namespace kvloom
