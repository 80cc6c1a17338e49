// The one list of what runs, in which order, for a map: segments, passes and the work of each layer (DESIGN 5).
// Trainer, prefill, schedules and cost models read this list; nothing else loops over passes.
#pragma once

#include <cstdint>
#include <vector>

#include "core/kv_map.h"

namespace kvloom {

// A maximal run of layers [first, last] that is iterated together; a layer outside any iteration is in a segment of its
// neighbours that has `iterated == false`.
struct Segment {
  int first;
  int last;
  bool iterated;

  friend bool operator==(const Segment&, const Segment&) = default;
};

// m and b of DESIGN 2.
struct Passes {
  int without_gradient = 7;
  int with_gradient = 2;
};

// Most of either kind of pass that a plan takes; what is beyond it is a mistake, not a model.
inline constexpr int kMostPasses = 4096;

enum class PlanMode : std::uint8_t {
  kTrain,    // m passes that keep nothing, then b that do; hidden states of every position leave the last layer
  kPrefill,  // min(m + b, positions) passes, none keeps anything; see `Positions`
};

// Which positions a layer computes beyond its K and V.
enum class Positions : std::uint8_t {
  kAll,
  kAsked,  // only those whose logits were asked for (prefill, from the last KV layer on)
};

enum class KeyValueWork : std::uint8_t { kNone, kCompute };

enum class AttentionWork : std::uint8_t {
  kNone,  // nothing is read: pass 0 of an upward reader (what it reads from above is zero), or the block does not run
  kRead,  // K and V of `read_pass`
};

enum class BlockWork : std::uint8_t {
  kNone,     // nothing reads the hidden states that would come out
  kCompute,  // attention (by AttentionWork), residual, feed-forward
};

// What one layer does in one pass.
struct LayerRun {
  int layer;
  int pass;
  ByPart<KeyValueWork> key_value;
  AttentionWork attention;
  BlockWork block;
  Positions positions;
  ByPart<int> read_pass;  // pass of K's source, and of V's, which the queries read; meaningful with kRead

  bool computes(KvPart part) const { return key_value[part] == KeyValueWork::kCompute; }
  bool computes_key_value() const { return computes(KvPart::kKey) || computes(KvPart::kValue); }
  // Whether anything that it computes starts from the norm before attention.
  bool needs_norm() const { return computes_key_value() || attention == AttentionWork::kRead; }
};

struct PlanStep {
  int segment;  // index into IterationPlan::segments
  int pass;     // counted from 0 within the segment
  bool keeps_gradient;
  bool last;                     // the segment's last pass: hidden states leave, K/V enter the cache
  std::vector<LayerRun> layers;  // ascending; starts from the segment's input hidden states
};

struct IterationPlan {
  std::vector<Segment> segments;
  std::vector<PlanStep> steps;
};

// The segments of a map, ascending, covering every layer once.
std::vector<Segment> segments_of(const KvMap& map);

// `positions` is the prompt's length T (prefill only). Throws InputError when m or b is outside 0 to
// kMostPasses, when m + b < 1, when training and b < 1, or when a prompt is empty.
IterationPlan make_iteration_plan(const KvMap& map, const Passes& passes, PlanMode mode, std::int64_t positions = 0);

// How many gradients of a source's K, or V, of a pass must arrive in backward: those who read it from above or beside
// in that pass and those who read it from below in the next one, of those runs that keep gradient.
int expected_gradient_readers(const IterationPlan& plan, const KvMap& map, KvPart part, int source, int pass);

// Layer runs that compute the block, K/V-only runs counted apart: the cost of a plan in units of a layer.
struct LayerRunCount {
  std::int64_t blocks = 0;
  std::int64_t blocks_with_gradient = 0;
  std::int64_t key_value_only = 0;
  std::int64_t key_value_only_with_gradient = 0;
  std::int64_t without_attention = 0;  // of `blocks`: pass 0 of upward reads
  std::int64_t asked_only = 0;         // of `blocks`: only for asked positions
};
LayerRunCount count_layer_runs(const IterationPlan& plan);

}  // namespace kvloom
