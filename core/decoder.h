// Sequential semantics, the definition of the model (DESIGN 4): one token at a time over the K/V that earlier tokens
// left, in a plain dense cache. Prefill fills the cache in parallel passes first.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/iteration_plan.h"
#include "core/kv_store.h"
#include "core/model.h"
#include "core/plan_run.h"
#include "core/rope_table.h"
#include "core/step_graphs.h"

namespace kvloom {

struct PrefillOptions {
  Passes passes;
  float tolerance = 0;     // see PlanRunOptions
  std::int64_t asked = 1;  // last positions of each sequence whose logits are wanted
};

// How the work of a step comes to the device.
enum class StepLaunch : std::uint8_t {
  kDirect,  // operation by operation
  kGraph,   // as a CUDA graph, with the same bits; a CPU and a first step know kDirect alone
};

// What follows a step on the device: work on its logits, f32 [sequences, vocab], that may write `tokens`, i32
// [sequences], where the next step looks for its own (Decoder::tokens). With graphs it is part of them: called when a
// step is recorded, not when it is launched again. So it asks for the same every time, of memory at fixed addresses
// which outlives the decoder.
using StepEnd = std::function<void(const Tensor& logits, Tensor& tokens)>;

struct DecoderOptions {
  StepLaunch launch = StepLaunch::kDirect;
  // A graph holds for sequences of up to this many positions, the next one for twice as many, and so on: what is
  // started for a step grows with how long sequences may be.
  std::int64_t first_bound = 256;
  StepEnd end = nullptr;  // of every step; null: nothing
};

class Decoder {
 public:
  // A cache of `capacity` positions for each of `sequences`. The model outlives the decoder.
  Decoder(const Model& model, std::int64_t sequences, std::int64_t capacity, const DecoderOptions& options = {});

  // tokens i32 [sequences * positions], sequences of equal length, into an empty cache. Returns logits f32
  // [sequences * asked, vocab]. With min(m + b, positions) == positions passes they equal those of `step`, and so does
  // the cache. Throws Error when the cache is not empty or too small.
  Tensor prefill(const Tensor& tokens, const PrefillOptions& options);

  // One token a sequence, at position length(). Returns logits f32 [sequences, vocab], which with graphs the next step
  // may overwrite. Throws Error when full.
  Tensor step(const Tensor& tokens);

  // A handle to the i32 [sequences] where a step looks for its tokens: given these, it copies none. They stay where
  // they are, and may be written.
  Tensor tokens() const { return tokens_; }

  // Forgets everything; the memory stays.
  void clear() { length_ = 0; }

  std::int64_t length() const { return length_; }
  std::int64_t capacity() const { return capacity_; }
  // Most passes that a segment of the last prefill ran.
  int prefill_passes() const { return prefill_passes_; }
  // CUDA graphs recorded so far.
  std::size_t graphs() const { return graphs_ == nullptr ? 0 : graphs_->recorded(); }

 private:
  Tensor launch_step();
  Tensor run_step(const Tensor& tokens, const LayerContext& context, std::int64_t keys);
  Tensor step_layer(int layer, const LayerContext& context, std::int64_t keys, const Tensor& hidden);
  std::int64_t bound_of(std::int64_t positions) const;
  LayerContext context_at(std::int64_t positions, std::int64_t first_position) const;

  const Model& model_;
  std::int64_t sequences_;
  std::int64_t capacity_;
  std::int64_t length_ = 0;
  int prefill_passes_ = 0;
  RopeTable rope_;
  std::vector<KeyValue> cache_;  // by layer; undefined what the layer does not own
  Tensor tokens_;
  StepEnd end_;

  // With graphs alone.
  std::int64_t first_bound_;
  Tensor positions_;                    // i32 [sequences], length_ where kernels read it
  std::int64_t device_length_ = -1;     // what positions_ holds; -1: nothing yet
  std::unique_ptr<StepGraphs> graphs_;  // goes before what its graphs name
};

// Bytes of K and V that one token of one sequence leaves, over all layers.
std::int64_t kv_bytes_per_token(const ModelConfig& config, DType dtype);

}  // namespace kvloom
