#include "train/mesh_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "core/config.h"
#include "kernels/error.h"
#include "parallel/device_kind.h"

namespace kvloom {
namespace {

int stages_per_rank_of(const proto::MeshConfig& mesh) { return std::max(1, static_cast<int>(mesh.stages_per_rank())); }

StageLayout given_layout_of(const proto::RunConfig& config) {
  const proto::MeshConfig& mesh = config.mesh();
  const std::vector<int> boundaries =
      parse_boundaries(mesh.boundaries(), static_cast<int>(config.model().layers()), "mesh.boundaries");
  const std::size_t stages = boundaries.size() - 1;
  const bool fits = mesh.stages_per_rank() == 0 ? stages % mesh.pipeline() == 0
                                                : stages == std::size_t{mesh.pipeline()} * mesh.stages_per_rank();
  if (!fits) {
    reject_input("mesh.boundaries: '{}' makes {} stages; mesh.pipeline {} with {} stages a rank asks for {}",
                 mesh.boundaries(), stages, mesh.pipeline(),
                 mesh.stages_per_rank() == 0 ? "any number of" : std::to_string(mesh.stages_per_rank()),
                 mesh.stages_per_rank() == 0 ? fmt::format("a multiple of {}", mesh.pipeline())
                                             : std::to_string(mesh.pipeline() * mesh.stages_per_rank()));
  }
  return {static_cast<int>(mesh.pipeline()), boundaries};
}

const DeviceKind& device_kind_of(const proto::MeshConfig& mesh) {
  return device_kinds()[static_cast<std::size_t>(mesh.devices())];
}

}  // namespace

DType compute_dtype_of(const proto::TrainConfig& train) {
  return train.precision() == proto::TrainConfig::BF16 ? DType::kBF16 : DType::kF32;
}

Recompute recompute_of(const proto::TrainConfig& train) {
  return train.recompute() == proto::TrainConfig::FULL ? Recompute::kFull : Recompute::kNone;
}

SequenceParallel sequence_parallel_of(const proto::MeshConfig& mesh) {
  return mesh.sequence_parallel() && mesh.tensor() > 1 ? SequenceParallel::kYes : SequenceParallel::kNo;
}

SchedulePolicy schedule_policy_of(const proto::MeshConfig& mesh) {
  return mesh.schedule() == proto::MeshConfig::GPIPE ? SchedulePolicy::kGPipe : SchedulePolicy::kOneForwardOneBackward;
}

StepShape step_shape_of(const proto::RunConfig& config, int data_ranks) {
  const proto::TrainConfig& train = config.train();
  const proto::MeshConfig& mesh = config.mesh();
  const std::int64_t together = std::int64_t{train.micro_batch()} * data_ranks;
  if (train.global_batch() % together != 0) {
    reject_input("train.global_batch: {}; right is a multiple of data ranks x train.micro_batch = {} x {}",
                 train.global_batch(), data_ranks, train.micro_batch());
  }
  if (sequence_parallel_of(mesh) == SequenceParallel::kYes && config.model().context() % mesh.tensor() != 0) {
    reject_input("mesh.sequence_parallel: {} tensor ranks cannot share model.context {} evenly", mesh.tensor(),
                 config.model().context());
  }
  return {.model = ModelConfig::from_proto(config.model()),
          .passes = passes_of(config.passes()),
          .micro_batches = static_cast<int>(train.global_batch() / together),
          .sequences = train.micro_batch(),
          .dtype = compute_dtype_of(train),
          .recompute = recompute_of(train),
          .tensor_ranks = static_cast<int>(mesh.tensor()),
          .sequence_parallel = sequence_parallel_of(mesh),
          .policy = schedule_policy_of(mesh),
          .update_ranks = mesh.shard_optimizer() ? data_ranks : 1};
}

Speeds speeds_of(const proto::RunConfig& config) {
  const proto::MeshConfig& mesh = config.mesh();
  Speeds speeds = device_kind_of(mesh).speeds(compute_dtype_of(config.train()));
  if (mesh.device_tflops() > 0) speeds.flops_per_second = mesh.device_tflops() * 1e12;
  if (mesh.link_gbps() > 0) speeds.link_bytes_per_second = mesh.link_gbps() * 1e9 / 8;
  return speeds;
}

PlacementLimits placement_limits_of(const proto::MeshConfig& mesh) {
  const std::int64_t memory =
      mesh.memory_gib() > 0 ? static_cast<std::int64_t>(mesh.memory_gib() * 0x1p30) : device_kind_of(mesh).memory_bytes;
  return {
      .ranks = static_cast<int>(mesh.pipeline()), .stages_per_rank = stages_per_rank_of(mesh), .memory_bytes = memory};
}

StageLayout even_layout_of(const proto::RunConfig& config) {
  int per_rank = stages_per_rank_of(config.mesh());
  if (!config.mesh().boundaries().empty()) {
    per_rank = given_layout_of(config).stages() / static_cast<int>(config.mesh().pipeline());
  }
  return StageLayout::even(static_cast<int>(config.model().layers()), static_cast<int>(config.mesh().pipeline()),
                           per_rank);
}

PredictedStep plan_step(const proto::RunConfig& config, const StepCounter& counter) {
  const proto::MeshConfig& mesh = config.mesh();
  const Speeds speeds = speeds_of(config);
  if (!mesh.boundaries().empty()) return predict_step(counter, given_layout_of(config), speeds);
  if (mesh.placement() == proto::MeshConfig::EVEN) return predict_step(counter, even_layout_of(config), speeds);
  return place_stages(counter, speeds, placement_limits_of(mesh));
}

std::string boundaries_text(const StageLayout& layout) {
  return fmt::format("{}", fmt::join(layout.boundaries().subspan(1, layout.boundaries().size() - 2), ","));
}

std::string describe_stages(const proto::RunConfig& config, const StepCounter& counter, const PredictedStep& planned) {
  if (planned.layout.stages() == 1) return "";
  const std::string stages = fmt::format("stages begin at layers 0,{}", boundaries_text(planned.layout));
  if (!config.mesh().boundaries().empty()) return stages;
  if (config.mesh().placement() == proto::MeshConfig::EVEN) return stages + " (even)";
  const PredictedStep even = predict_step(counter, even_layout_of(config), speeds_of(config));
  return fmt::format("{} (auto, predicted {:.2f} times as fast as even)", stages,
                     even.times.makespan / planned.times.makespan);
}

}  // namespace kvloom
