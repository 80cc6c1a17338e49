// Who would hold which layers of a served model, what stages would send for each token, how many sequences fit, and how
// fast they would be decoded (DESIGN 6, 12). The engine cuts models and counts pages by this; `kvloom plan --serve`
// prints it. Pure functions: nothing runs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/config.h"
#include "core/kv_pages.h"
#include "core/shard.h"
#include "core/stage_links.h"
#include "kernels/packed_linear.h"

namespace kvloom {

struct ServingShape {
  ModelConfig model;
  int stages = 1;
  int tensor_ranks = 1;
  DType compute = DType::kF32;
  WeightFormat weights = WeightFormat::kF32;
  KvFormat kv_format = KvFormat::kF32;
  std::int64_t page_size = 32;
  std::int64_t context = 0;     // positions of a sequence
  std::int64_t rows_ahead = 1;  // of a sequence that are not final, at most
};

// What one rank reaches.
struct ServingSpeeds {
  double flops_per_second = 0;
  double memory_bytes_per_second = 0;
  double link_bytes_per_second = 0;  // 0: messages take no time
};

// Sequences of a step that stages are placed for where nothing else is known.
inline constexpr std::int64_t kTypicalBatch = 16;

// Bytes that stages send to one another, over all ranks, keys and lists of rows left aside.
struct StageBytes {
  std::int64_t hidden = 0;
  std::int64_t downward = 0;  // K and V for stages above the source
  std::int64_t upward = 0;    // and for those below
  std::int64_t logits = 0;

  std::int64_t total() const { return hidden + downward + upward + logits; }
  friend bool operator==(const StageBytes&, const StageBytes&) = default;
};
// Of one decoded token.
StageBytes bytes_per_token(const ServingShape& shape, std::span<const int> boundaries);
// That one token sends along the edge, over all tensor ranks.
std::int64_t bytes_per_token(const ServingShape& shape, const KvEdge& edge);

// Pages of each group of sources, the same on every stage: as many as that stage has that can have the fewest.
// `kv_bytes` are of one rank. Throws InputError when not one sequence fits.
std::vector<std::int64_t> pages_of_stages(const ServingShape& shape, std::span<const int> boundaries,
                                          std::int64_t kv_bytes);
// Of one sequence, on the stage that needs most for it.
std::int64_t sequence_bytes(const ServingShape& shape, std::span<const int> boundaries);
// Sequences of `context` positions that so many pages hold.
std::int64_t sequences_within(const ServingShape& shape, std::span<const std::int64_t> pages);

// What one rank of a stage holds, and what a step asks of it.
struct ServedStage {
  LayerRange layers;
  std::int64_t weight_bytes = 0;
  std::int64_t kv_bytes_per_token = 0;  // of the sources that it keeps
  // A decoding step of `sequences`, each of which sees `positions`.
  double step_bytes(std::int64_t sequences, std::int64_t positions) const;
  double step_flops(std::int64_t sequences, std::int64_t positions) const;

  double read_weight_bytes = 0;  // in a step: an embedding that is not the head is only looked up
  double read_kv_bytes = 0;      // by all layers, for each sequence and position
  double flops_per_token = 0;
  double attention_flops = 0;   // for each sequence and position
  std::int64_t sent_bytes = 0;  // for each token
  double received_bytes = 0;    // likewise
};
std::vector<ServedStage> served_stages(const ServingShape& shape, std::span<const int> boundaries);

// Of the slowest stage.
double step_seconds(const ServingShape& shape, const ServingSpeeds& speeds, std::span<const int> boundaries,
                    std::int64_t sequences, std::int64_t positions);
// With as many steps under way as there are stages, each of an equal part of the sequences.
double tokens_per_second(const ServingShape& shape, const ServingSpeeds& speeds, std::span<const int> boundaries,
                         std::int64_t sequences, std::int64_t positions);
// A prompt through all stages, one after the other, in so many passes a token of iterated segments.
double first_token_seconds(const ServingShape& shape, const ServingSpeeds& speeds, std::span<const int> boundaries,
                           std::int64_t prompt, double passes_per_token);

// The boundaries whose slowest stage takes least for steps of `sequences` at `positions`; of equals those that send
// least. Throws InputError when there are fewer layers than stages.
std::vector<int> place_served_stages(const ServingShape& shape, const ServingSpeeds& speeds, std::int64_t sequences,
                                     std::int64_t positions);

}  // namespace kvloom
