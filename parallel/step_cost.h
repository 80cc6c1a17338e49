// What one training step costs on a pipeline: operations, bytes across each boundary and bytes of memory, counted from
// the chain that will run. Predicted times, placement and `kvloom plan` all read it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/config.h"
#include "core/cost.h"
#include "core/plan_run.h"
#include "kernels/dtype.h"
#include "parallel/chunk_chain.h"
#include "parallel/schedule.h"
#include "parallel/tensor_ranks.h"

namespace kvloom {

struct StepShape {
  ModelConfig model;
  Passes passes;
  int micro_batches = 1;
  std::int64_t sequences = 1;  // of a micro-batch, each of model.context positions
  DType dtype = DType::kF32;
  Recompute recompute = Recompute::kNone;
  int tensor_ranks = 1;
  SequenceParallel sequence_parallel = SequenceParallel::kNo;
  SchedulePolicy policy = SchedulePolicy::kOneForwardOneBackward;
  int update_ranks = 1;  // data ranks that share the optimizer state (ZeRO-1)
};

struct Speeds {
  double flops_per_second = 0;       // of one rank
  double link_bytes_per_second = 0;  // of one ordered pair of ranks; 0: messages take no time
};

// Of one micro-batch on one tensor rank; the tensor ranks of a pipeline rank cost the same.
struct ChainCosts {
  // By chunk. Backward counts recompute, and the head's forward and backward, which come together; 0 where the chunk
  // keeps no gradient. The embedding counts one operation an element.
  std::vector<Flops> flops;
  // By edge. Hidden states and their gradients are in the compute dtype, K and V too; dK and dV are f32.
  std::vector<std::int64_t> bytes;
  std::vector<std::int64_t> gradient_bytes;  // 0 where none comes back
  // By chunk: what it keeps until it has run backward, received K/V that it is the first to read among that.
  std::vector<std::int64_t> kept_bytes;

  ScheduleCosts at(const Speeds& speeds) const;
};

// Bytes that cross from one rank to another in one micro-batch.
struct LinkBytes {
  std::int64_t hidden = 0;
  std::int64_t hidden_gradient = 0;
  std::int64_t key_value = 0;
  std::int64_t key_value_gradient = 0;
  std::int64_t messages = 0;  // each also carries kMessageKeyBytes

  std::int64_t total() const { return hidden + hidden_gradient + key_value + key_value_gradient; }
  friend bool operator==(const LinkBytes&, const LinkBytes&) = default;
};
inline constexpr std::int64_t kMessageKeyBytes = 24;

// The sum over the edges from `from_rank` to `to_rank`, and of the gradients along edges the other way.
LinkBytes link_bytes(const ChunkChain& chain, const ChainCosts& costs, int from_rank, int to_rank);

// Of one rank at its fullest.
struct RankMemory {
  std::int64_t weights = 0;      // those computed with, f32 masters, gradients and optimizer state
  std::int64_t activations = 0;  // kept for backward, K/V of passes with gradient and a recomputed layer among them
  std::int64_t key_values = 0;   // of the passes without gradient, in flight

  std::int64_t total() const { return weights + activations + key_values; }
};

// Counts a step for any layout of its layers. The operations of the plan are counted once.
class StepCounter {
 public:
  // Throws InputError when the model cannot be cut among the tensor ranks.
  explicit StepCounter(StepShape shape);

  const StepShape& shape() const { return shape_; }
  const IterationPlan& plan() const { return plan_; }
  // Of run `run` of step `step`; backward with recompute, 0 without gradient.
  const Flops& flops(std::size_t step, std::size_t run) const { return flops_[step][run]; }
  // The embedding's, the head's: of one micro-batch.
  Flops embedding_flops() const;
  Flops head_flops() const;
  std::int64_t hidden_bytes() const;
  // Of one source's K, or V.
  std::int64_t part_bytes(DType dtype) const;
  // What a run that keeps gradient keeps, its own K/V among it.
  std::int64_t kept_bytes(const LayerRun& run) const;
  // Weights, gradients and (the largest share of) optimizer state of one rank.
  std::int64_t weight_bytes(const StageLayout& layout, int rank) const;

  ChainCosts count(const ChunkChain& chain) const;
  std::vector<RankMemory> memory(const StageLayout& layout, const ChunkChain& chain, const ChainCosts& costs,
                                 const ScheduleTimes& times) const;

 private:
  std::int64_t rows() const { return shape_.sequences * shape_.model.context; }
  std::int64_t own_rows() const;
  std::int64_t kept_bytes(const LayerRun& run, Recompute recompute) const;
  std::int64_t recomputed_bytes(const ChunkChain& chain, int rank) const;
  std::int64_t peak_kept_bytes(const ChunkChain& chain, const ChainCosts& costs,
                               const std::vector<ScheduleTimes::Span>& spans) const;
  std::int64_t key_values_in_flight(const ChunkChain& chain, int rank,
                                    const std::vector<ScheduleTimes::Span>& spans) const;

  StepShape shape_;
  ModelConfig part_;  // of one tensor rank: its heads, KV heads, ffn and vocab
  IterationPlan plan_;
  std::vector<std::vector<Flops>> flops_;  // by step and run
};

}  // namespace kvloom
