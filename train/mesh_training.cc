#include "train/mesh_training.h"

#include <array>
#include <cmath>
#include <vector>

#include "core/device_choice.h"
#include "parallel/gradient_buckets.h"
#include "train/mesh_config.h"

namespace kvloom {
namespace {

Mesh mesh_of(const proto::MeshConfig& mesh, int ranks) {
  return Mesh::fit(mesh.data(), mesh.pipeline(), mesh.tensor(), ranks);
}

std::unique_ptr<Communicator> connect(const RankDevice& device, Communicator& world, Allocator& allocator) {
  if (device.device.kind == Device::Kind::kCpu || world.size() == 1) return nullptr;
  if (!device.connect) fail("mesh: nothing connects {} ranks on GPUs", world.size());
  return device.connect(world, allocator);
}

}  // namespace

MeshTraining::MeshTraining(const proto::RunConfig& config, Communicator& world, const RankDevice& device, Warning warn)
    : config_(config),
      warn_(std::move(warn)),
      mesh_(mesh_of(config.mesh(), world.size())),
      allocator_(make_allocator(device.device, device.gpu)),
      tensors_world_(connect(device, world, *allocator_)),
      ranks_(world, tensors_world_ == nullptr ? world : *tensors_world_, mesh_),
      sequence_parallel_(sequence_parallel_of(config.mesh())),
      tensor_ranks_(ranks_.tensor(), sequence_parallel_, *allocator_),
      data_replicas_(ranks_.data(), config.mesh().shard_optimizer() ? UpdateSharing::kShare : UpdateSharing::kWhole) {
  const StepCounter counter(step_shape_of(config, ranks_.mesh().data));
  micro_batches_ = counter.shape().micro_batches;
  const PredictedStep planned = plan_step(config, counter);
  if (world.rank() == 0) stages_ = describe_stages(config, counter, planned);
  const MeshPlace& place = ranks_.place();
  model_ = std::make_unique<Model>(ModelConfig::from_proto(config.model()),
                                   pipeline_shard(planned.layout, place.pipeline, place.tensor, ranks_.mesh().tensor),
                                   compute_dtype_of(config.train()), *allocator_);
  optimizer_ =
      std::make_unique<AdamWOptimizer>(*model_, data_replicas_.updated_here(model_->layout().count()), config.train());
  gradients_ = std::make_unique<ModelGradients>(*model_);
  replica_gradients_ = std::make_unique<ReplicaGradients>(*model_, ranks_, sequence_parallel_);
  make_pipelines(planned);
}

void MeshTraining::make_pipelines(const PredictedStep& planned) {
  PipelineOptions options{.passes = passes_of(config_.passes()),
                          .layout = planned.layout,
                          .policy = schedule_policy_of(config_.mesh()),
                          .recompute = recompute_of(config_.train()),
                          .sequences = config_.train().micro_batch(),
                          .positions = model_->config().context,
                          .costs = planned.costs.at(speeds_of(config_))};
  if (config_.mesh().patience_seconds() != 0) {
    options.patience.limit = std::chrono::seconds(config_.mesh().patience_seconds());
  }
  options.patience.warn = warn_;
  TensorGroup* tensor = ranks_.mesh().tensor > 1 ? &tensor_ranks_ : nullptr;
  pipeline_ = std::make_unique<Pipeline>(*model_, ranks_.pipeline(), tensor, options);
  options.mode = PlanMode::kPrefill;
  options.costs.reset();
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
  const LinkBytes before = sent_so_far();
  GradientBuckets buckets(*model_, *replica_gradients_, data_replicas_, *gradients_);
  double loss =
      pipeline_->train(placed, static_cast<float>(1 / tokens), *gradients_, [&](int part) { buckets.complete(part); });
  buckets.finish();
  add_up_sent(before);
  ranks_.pipeline().all_reduce(std::span(&loss, 1));
  ranks_.data().all_reduce(std::span(&loss, 1));
  return loss / tokens;
}

LinkBytes MeshTraining::sent_so_far() {
  const auto bytes = [&](EdgeTag tag) {
    return static_cast<std::int64_t>(ranks_.pipeline().sent_bytes(static_cast<int>(tag)));
  };
  return {.hidden = bytes(EdgeTag::kHidden),
          .hidden_gradient = bytes(EdgeTag::kHiddenGradient),
          .key_value = bytes(EdgeTag::kKeyValue),
          .key_value_gradient = bytes(EdgeTag::kKeyValueGradient),
          .messages = bytes(EdgeTag::kKey) / kMessageKeyBytes};
}

void MeshTraining::add_up_sent(const LinkBytes& before) {
  if (ranks_.pipeline().size() == 1) return;
  const LinkBytes now = sent_so_far();
  std::array<std::int64_t, 5> sums = {
      now.hidden - before.hidden, now.hidden_gradient - before.hidden_gradient, now.key_value - before.key_value,
      now.key_value_gradient - before.key_value_gradient, now.messages - before.messages};
  ranks_.world().all_reduce(std::span<std::int64_t>(sums));
  sent_ = {sums[0], sums[1], sums[2], sums[3], sums[4]};
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
  const bool gathered = data_replicas_.gather(*model_);
  const bool spread = replica_gradients_->spread_first_copies(*model_);
  if (gathered || spread) model_->refresh();
}

double MeshTraining::evaluate(std::span<const TokenBatch> batches) {
  double loss_sum = evaluation_pipeline_->evaluate(batches);
  ranks_.pipeline().all_reduce(std::span(&loss_sum, 1));
  return loss_sum;
}

}  // namespace kvloom
