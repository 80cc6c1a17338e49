// Runs a schedule on one rank of a pipeline: chunks of layers forward and backward, K/V and hidden states along edges,
// gradients back along them (DESIGN 6). A pipeline of one rank runs everything itself.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/model.h"
#include "core/plan_run.h"
#include "core/training_pass.h"
#include "parallel/chunk_chain.h"
#include "parallel/communicator.h"
#include "parallel/edge_messages.h"
#include "parallel/schedule.h"
#include "parallel/stage_layout.h"

namespace kvloom {

struct PipelineOptions {
  Passes passes;
  PlanMode mode = PlanMode::kTrain;  // kPrefill to evaluate
  StageLayout layout;
  SchedulePolicy policy = SchedulePolicy::kOneForwardOneBackward;
  Recompute recompute = Recompute::kNone;
  std::int64_t sequences = 1;  // of a micro-batch
  std::int64_t positions = 1;  // of a sequence
  // Of the mode's chain, what schedules are made by; none: the numbers of layer runs.
  std::optional<ScheduleCosts> costs = std::nullopt;
  Patience patience = {};
};

// The shard of pipeline rank `rank`: the layers of its stages; the embedding is with the first layer, the head with the
// last.
ModelShard pipeline_shard(const StageLayout& layout, int rank, int tensor_rank, int tensor_size);

// Told of each part of the model (Parameter::part) on this rank when its gradient is complete, in the order in which
// backward gets there, the same for ranks that run the same schedule. The embedding's is at the end, and not told.
using PartComplete = std::function<void(int part)>;

class Pipeline {
 public:
  // `model` is this rank's shard; `ranks` the pipeline's, `tensor` those that share its matrices (may be null). All
  // outlive the pipeline.
  Pipeline(const Model& model, Communicator& ranks, TensorGroup* tensor, PipelineOptions options);
  ~Pipeline();

  // One micro-batch a batch, all of the same shape; every rank gives the same ones. Adds the gradients of grad_scale
  // times the sum of all losses, for this rank's weights (+=). Returns that sum in nats, without the scale, on the rank
  // with the head, and 0 on the others.
  double train(std::span<const TokenBatch> batches, float grad_scale, ModelGradients& gradients,
               PartComplete complete = {});

  // The sum of losses in nats on the rank with the head, 0 on the others. Of a kPrefill pipeline.
  double evaluate(std::span<const TokenBatch> batches);

  const ChunkChain& chain() const { return chain_; }
  const IterationPlan& plan() const { return plan_; }
  // The schedule for that many micro-batches; made once.
  const Schedule& schedule(int micro_batches);
  // What the last `train` or `evaluate` ran here.
  const LayerRunTally& tally() const { return tally_; }

 private:
  class Step;

  const Model& model_;
  Communicator& ranks_;
  TensorGroup* tensor_;
  PipelineOptions options_;
  IterationPlan plan_;
  RopeTable rope_;
  ChunkChain chain_;
  std::map<int, Schedule> schedules_;  // by micro-batches
  LayerRunTally tally_;
};

}  // namespace kvloom
