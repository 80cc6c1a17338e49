// Sequential semantics, the definition of the model (DESIGN 4): one token at a time over the K/V that earlier tokens
// left, in a plain dense cache. Prefill fills the cache in parallel passes first.
#pragma once

#include <cstdint>
#include <vector>

#include "core/iteration_plan.h"
#include "core/kv_store.h"
#include "core/model.h"
#include "core/plan_run.h"
#include "core/rope_table.h"

namespace kvloom {

struct PrefillOptions {
  Passes passes;
  float tolerance = 0;     // see PlanRunOptions
  std::int64_t asked = 1;  // last positions of each sequence whose logits are wanted
};

class Decoder {
 public:
  // A cache of `capacity` positions for each of `sequences`. The model outlives the decoder.
  Decoder(const Model& model, std::int64_t sequences, std::int64_t capacity);

  // tokens i32 [sequences * positions], sequences of equal length, into an empty cache. Returns logits f32
  // [sequences * asked, vocab]. With min(m + b, positions) == positions passes they equal those of `step`, and so does
  // the cache. Throws Error when the cache is not empty or too small.
  Tensor prefill(const Tensor& tokens, const PrefillOptions& options);

  // One token a sequence, at position length(). Returns logits f32 [sequences, vocab]. Throws Error when full.
  Tensor step(const Tensor& tokens);

  // Forgets everything; the memory stays.
  void clear() { length_ = 0; }

  std::int64_t length() const { return length_; }
  std::int64_t capacity() const { return capacity_; }
  // Most passes that a segment of the last prefill ran.
  int prefill_passes() const { return prefill_passes_; }

 private:
  Tensor step_layer(int layer, const LayerContext& context, const Tensor& hidden);
  LayerContext context_at(std::int64_t positions, std::int64_t first_position) const;

  const Model& model_;
  std::int64_t sequences_;
  std::int64_t capacity_;
  std::int64_t length_ = 0;
  int prefill_passes_ = 0;
  RopeTable rope_;
  std::vector<KeyValue> cache_;  // by layer; undefined where the layer is no KV layer
};

// Bytes of K and V that one token of one sequence leaves, over all KV layers.
std::int64_t kv_bytes_per_token(const ModelConfig& config, DType dtype);

}  // namespace kvloom
