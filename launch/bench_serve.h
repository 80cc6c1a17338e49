// `kvloom bench serve`: what the inference engine gives, map by map and batch by batch, beside what the machine's
// memory and its matrix products allow.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "core/inference_model.h"
#include "infer/engine/engine_options.h"
#include "infer/load/arrivals.h"
#include "infer/ranks/serving_ranks.h"
#include "launch/bench_form.h"

namespace kvloom {

struct BenchServeRequest {
  std::string checkpoint;         // measured as it is; empty: random weights of `model`'s shape
  proto::ModelConfig model;       // without map and context
  std::vector<std::string> maps;  // of random weights; compared with the first
  InferenceFormat format;
  ServingRanks* ranks = nullptr;      // null: one
  EngineOptions engine;               // context 0: as long as the run needs; kv_bytes 0: as much as it needs
  std::vector<std::int64_t> batches;  // sequences that are decoded together; 0: as many as the memory for K/V holds
  std::int64_t prompt = 512;
  std::int64_t steps = 32;                        // timed tokens of each sequence
  int repetitions = 3;                            // the best counts
  bool whole = false;                             // all sequences once more from arrival to their last token
  std::vector<std::int64_t> first_token_prompts;  // lengths whose time to first token is measured
  ArrivalLoad arrivals{.per_second = 0};          // 0: none are measured
  BenchForm form = BenchForm::kText;
};

// What cannot be measured is named in its place, and the rest is measured; then throws Error.
void bench_serve(const BenchServeRequest& request, std::ostream& out);

}  // namespace kvloom
