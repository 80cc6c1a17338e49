// Carries out the rows of a step (core/step_rows.h) over K and V in pages: decoded tokens, chunks of prompts and
// wavefront passes go through each layer together, once. It decides nothing but which rows of a wavefront have settled.
//
// Every row's result depends on its own sequence alone: products, norms and attention have the same bits for a row
// whatever other rows are there (kernels/packed_linear.h, kernels/ragged_attention.h).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "core/head.h"
#include "core/inference_model.h"
#include "core/kv_pages.h"
#include "core/rope_table.h"
#include "core/step_rows.h"

namespace kvloom {

// What K and V of an iterated segment's sources are before a token's first pass. The fixed point is the same whatever
// the guess; a good one saves passes.
enum class StartingGuess : std::uint8_t {
  kProjection,  // the source's projection of the segment's input
  kZeros,
};

struct ForwardOptions {
  // A token of a wavefront settles when the K and V of upward-read sources moved by no more than this in a pass,
  // relative to the largest value of that source among the block's tokens that were computed so far, and so did those
  // of every token of the window before it; 0: when their bits stood still.
  float tolerance = 1e-3f;
  StartingGuess guess = StartingGuess::kProjection;
  std::int64_t context = 0;  // positions that a sequence may have
  std::int64_t block = 512;  // rows of the blocks that prompts are cut into, at most (RowRun::block_first)
};

class ForwardRun {
 public:
  // Model and pages outlive it.
  ForwardRun(const InferenceModel& model, KvPages& pages, const ForwardOptions& options);
  ~ForwardRun();

  // Throws Error for rows that do not fit the model.
  StepOutcome run(const StepRows& rows, const PageTables& tables);

  // Gives `sink` the logits f32 [n, vocab] of every wanted row of the last step, in the order of runs and positions,
  // some rows at a time.
  void logits(const LogitsSink& sink);

  // What layers really computed so far: rows times layers.
  std::int64_t layer_rows() const { return layer_rows_; }

 private:
  class Step;
  friend class Step;

  // Of one source, K and V apart: the largest value among the block's settled tokens.
  struct Largest {
    float key = 0;
    float value = 0;
  };
  // What a sequence's prompt leaves from one step to the next.
  struct Kept {
    Tensor hidden;                   // [rows of a block, hidden], by position in the block; undefined: nothing
    std::map<int, Largest> largest;  // by source
  };

  const InferenceModel& model_;
  KvPages& pages_;
  ForwardOptions options_;
  RopeTable rope_;
  std::map<std::int32_t, Kept> kept_;  // by slot
  Tensor wanted_;                      // hidden states [rows, hidden] of the last step, above the last layer
  std::int64_t layer_rows_ = 0;
};

}  // namespace kvloom
