// What an engine is asked for, and what that is to its scheduler and to its runner.
#pragma once

#include <cstdint>

#include "core/forward_run.h"
#include "core/inference_model.h"
#include "infer/engine/runner.h"
#include "infer/engine/scheduler.h"

namespace kvloom {

struct EngineOptions {
  // Numeric options: what a request computes depends on them.
  KvFormat kv_format = KvFormat::kF32;
  StartingGuess guess = StartingGuess::kProjection;
  float tolerance = 1e-3f;          // of wavefronts (core/forward_run.h)
  std::int64_t window = 64;         // W: tokens of a prompt that are iterated together
  std::int64_t grid = 512;          // G: windows do not cross its multiples, and prefixes are found there
  std::int64_t prefill_passes = 0;  // a token settles after so many passes at the latest; 0: no cap
  // Resources: they change when things run, never what comes out.
  std::int64_t context = 0;     // tokens of a sequence at most; 0: the model's
  std::int64_t page_size = 32;  // positions of a page
  std::int64_t kv_bytes =
      0;  // memory of a rank for pages; 0: what max_sequences of `context` tokens need, 1 GiB at most
  std::int64_t swap_bytes = 0;  // of the host, for pages of sequences that had to give way
  std::int64_t max_sequences = 256;
  std::int64_t budget = 0;  // layer-rows of a step (infer/engine/scheduler.h); 0: 512 rows of all layers
  std::int64_t max_chunk = 512;
  bool prefix_cache = true;
  bool reuse_generated = true;
  int steps_under_way = 0;  // at one time, each of other sequences; 0: as many as there are stages. One rank has one
};

// The other ranks that hold parts of the same model, as one of them sees them.
struct ModelRanks {
  TensorGroup* tensor = nullptr;  // they share the matrices; null: this one has whole matrices
  StageLinks* stages = nullptr;   // they hold the other layers; null: this one has all
};

// `options` with what was 0 filled in: the same on every rank. Throws InputError for what is out of its range.
EngineOptions completed(EngineOptions options, const InferenceModel& model, const ModelRanks& ranks = {});

// Of completed options. Throws InputError when the memory for pages holds not one sequence.
RunnerOptions running_of(const EngineOptions& options, const InferenceModel& model, const ModelRanks& ranks = {});
// Over the pages that the runner has.
SchedulerOptions scheduling_of(const EngineOptions& options, const InferenceModel& model, const KvPagesOptions& pages);

}  // namespace kvloom
