#include "train/mesh_training.h"

#include <cmath>
#include <vector>

#include "kernels/error.h"
#include "parallel/gradient_buckets.h"
#include "train/mesh_config.h"

namespace kvloom {
namespace {

DType compute_dtype(const proto::TrainConfig& train) {
  return train.precision() == proto::TrainConfig::BF16 ? DType::kBF16 : DType::kF32;
}

Recompute recompute_of(const proto::TrainConfig& train) {
  return train.recompute() == proto::TrainConfig::FULL ? Recompute::kFull : Recompute::kNone;
}

SequenceParallel sequence_parallel_of(const proto::MeshConfig& mesh) {
  return mesh.sequence_parallel() && mesh.tensor() > 1 ? SequenceParallel::kYes : SequenceParallel::kNo;
}

Mesh mesh_of(const proto::MeshConfig& mesh, int ranks) {
  return Mesh::fit(mesh.data(), mesh.pipeline(), mesh.tensor(), ranks);
}

}  // namespace

MeshTraining::MeshTraining(const proto::RunConfig& config, Communicator& world)
    : config_(config),
      ranks_(world, mesh_of(config.mesh(), world.size())),
      sequence_parallel_(sequence_parallel_of(config.mesh())),
      tensor_ranks_(ranks_.tensor(), sequence_parallel_, allocator_),
      data_replicas_(ranks_.data(), config.mesh().shard_optimizer() ? UpdateSharing::kShare : UpdateSharing::kWhole) {
  check_batch();
  micro_batches_ = static_cast<std::int64_t>(config.train().global_batch()) / ranks_.mesh().data /
                   static_cast<std::int64_t>(config.train().micro_batch());
  const StageLayout layout = stage_layout_of(config);
  const MeshPlace& place = ranks_.place();
  model_ = std::make_unique<Model>(ModelConfig::from_proto(config.model()),
                                   pipeline_shard(layout, place.pipeline, place.tensor, ranks_.mesh().tensor),
                                   compute_dtype(config.train()), allocator_);
  optimizer_ =
      std::make_unique<AdamWOptimizer>(*model_, data_replicas_.updated_here(model_->layout().count()), config.train());
  gradients_ = std::make_unique<ModelGradients>(*model_);
  replica_gradients_ = std::make_unique<ReplicaGradients>(*model_, ranks_, sequence_parallel_);
  make_pipelines(layout);
}

void MeshTraining::check_batch() const {
  const proto::TrainConfig& train = config_.train();
  const auto data = static_cast<std::uint32_t>(ranks_.mesh().data);
  if (train.global_batch() % (data * train.micro_batch()) != 0) {
    reject_input("train.global_batch: {}; right is a multiple of data ranks x train.micro_batch = {} x {}",
                 train.global_batch(), data, train.micro_batch());
  }
  const auto tensor = static_cast<std::uint32_t>(ranks_.mesh().tensor);
  if (sequence_parallel_ == SequenceParallel::kYes && config_.model().context() % tensor != 0) {
    reject_input("mesh.sequence_parallel: {} tensor ranks cannot share model.context {} evenly", tensor,
                 config_.model().context());
  }
}

void MeshTraining::make_pipelines(const StageLayout& layout) {
  PipelineOptions options{.passes = passes_of(config_.passes()),
                          .layout = layout,
                          .policy = schedule_policy_of(config_.mesh()),
                          .recompute = recompute_of(config_.train()),
                          .sequences = config_.train().micro_batch(),
                          .positions = model_->config().context};
  if (config_.mesh().patience_seconds() != 0) {
    options.patience = std::chrono::seconds(config_.mesh().patience_seconds());
  }
  TensorGroup* tensor = ranks_.mesh().tensor > 1 ? &tensor_ranks_ : nullptr;
  pipeline_ = std::make_unique<Pipeline>(*model_, ranks_.pipeline(), tensor, options);
  options.mode = PlanMode::kPrefill;
  options.sequences = 1;
  evaluation_pipeline_ = std::make_unique<Pipeline>(*model_, ranks_.pipeline(), tensor, options);
}

double MeshTraining::accumulate_gradients(std::span<const MicroBatch> batches) {
  const proto::TrainConfig& train = config_.train();
  const double tokens = static_cast<double>(train.global_batch()) * static_cast<double>(model_->config().context);
  std::vector<TokenBatch> placed;
  for (const MicroBatch& batch : batches) {
    placed.push_back(make_token_batch(*model_, batch.tokens, batch.targets, train.micro_batch()));
  }
  gradients_->flat.fill_zero();
  GradientBuckets buckets(*model_, *replica_gradients_, data_replicas_, *gradients_);
  double loss =
      pipeline_->train(placed, static_cast<float>(1 / tokens), *gradients_, [&](int part) { buckets.complete(part); });
  buckets.finish();
  ranks_.pipeline().all_reduce(std::span(&loss, 1));
  ranks_.data().all_reduce(std::span(&loss, 1));
  return loss / tokens;
}

double MeshTraining::gradient_norm() {
  const ElementRange& range = optimizer_->range();
  double squares = replica_gradients_->sum_of_squares(*gradients_, range.begin, range.end);
  ranks_.model().all_reduce(std::span(&squares, 1));
  if (data_replicas_.shares()) ranks_.data().all_reduce(std::span(&squares, 1));
  return std::sqrt(squares);
}

void MeshTraining::update(double learning_rate, double scale) {
  optimizer_->step(gradients_->flat, learning_rate, scale);
  data_replicas_.gather(*model_);
}

double MeshTraining::evaluate(std::span<const TokenBatch> batches) {
  double loss_sum = evaluation_pipeline_->evaluate(batches);
  ranks_.pipeline().all_reduce(std::span(&loss_sum, 1));
  return loss_sum;
}

}  // namespace kvloom
