// What one rank of a mesh does in a training step: its shard of the model through the pipeline, sums of gradients over
// whoever holds or sees other parts, the update.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "core/device_choice.h"
#include "core/model.h"
#include "parallel/communicator.h"
#include "parallel/data_replicas.h"
#include "parallel/device_ranks.h"
#include "parallel/mesh_ranks.h"
#include "parallel/pipeline.h"
#include "parallel/placement.h"
#include "parallel/replica_gradients.h"
#include "parallel/tensor_ranks.h"
#include "proto/run.pb.h"
#include "train/background_loader.h"
#include "train/optimizer.h"

namespace kvloom {

// Told, on any rank, of what may be going wrong: one line.
using Warning = std::function<void(const std::string&)>;

// What a rank computes on.
struct RankDevice {
  Device device;
  GpuSetting gpu;        // how, where that is a GPU
  ConnectRanks connect;  // several ranks on GPUs need it; the CPU's tensors travel over the world itself
};

class MeshTraining {
 public:
  // `config` is filled and checked (core/config.h); `world` outlives this. Weights are not set yet. Collective. Throws
  // InputError for a mesh or batch that does not fit, and for a device that is not there. `warn` is told of messages
  // that are late (Patience).
  MeshTraining(const proto::RunConfig& config, Communicator& world, const RankDevice& device = {}, Warning warn = {});

  MeshRanks& ranks() { return ranks_; }
  const MeshRanks& ranks() const { return ranks_; }
  Model& model() { return *model_; }
  const Model& model() const { return *model_; }
  AdamWOptimizer& optimizer() { return *optimizer_; }
  const IterationPlan& plan() const { return pipeline_->plan(); }
  std::size_t peak_bytes() const { return allocator_->statistics().peak_bytes; }
  UpdateSharing update_sharing() const {
    return data_replicas_.shares() ? UpdateSharing::kShare : UpdateSharing::kWhole;
  }
  // Of a step, for each data rank.
  std::int64_t micro_batches() const { return micro_batches_; }
  // On rank 0: where stages begin and who chose it, in words (mesh_config.h).
  const std::string& stages() const { return stages_; }

  // From this data rank's micro_batches() micro-batches: leaves the gradient of the mean loss over the global batch, of
  // what this rank updates, and returns that loss in nats per token; equal on every rank.
  double accumulate_gradients(std::span<const MicroBatch> batches);
  // What stages sent to one another meanwhile, as their communicators counted it: the sum over all ranks.
  const LinkBytes& sent() const { return sent_; }
  // The 2-norm of the gradient over all ranks, each weight counted once.
  double gradient_norm();
  // One update from the gradient times `scale`, and everyone's weights after it.
  void update(double learning_rate, double scale);
  // f32, flat as the weights.
  const Tensor& gradients() const { return gradients_->flat; }

  // The sum of losses in nats over this data rank's batches of single sequences; equal on its ranks.
  double evaluate(std::span<const TokenBatch> batches);

 private:
  void make_pipelines(const PredictedStep& planned);
  LinkBytes sent_so_far();
  void add_up_sent(const LinkBytes& before);

  proto::RunConfig config_;
  Warning warn_;
  Mesh mesh_;
  std::unique_ptr<Allocator> allocator_;
  std::unique_ptr<Communicator> tensors_world_;  // null: the world; works on the allocator's stream, so goes before it
  MeshRanks ranks_;
  SequenceParallel sequence_parallel_;
  TensorRanks tensor_ranks_;
  DataReplicas data_replicas_;
  std::int64_t micro_batches_ = 0;
  std::string stages_;
  LinkBytes sent_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<AdamWOptimizer> optimizer_;
  std::unique_ptr<ModelGradients> gradients_;
  std::unique_ptr<ReplicaGradients> replica_gradients_;
  std::unique_ptr<Pipeline> pipeline_;
  std::unique_ptr<Pipeline> evaluation_pipeline_;  // of single sequences
};

}  // namespace kvloom
