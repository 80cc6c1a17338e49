#include "train/mesh_measurement.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <numeric>
#include <span>
#include <thread>
#include <utility>

#include "core/config.h"
#include "core/measured_rates.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr int kTag = 0;
constexpr const char* kAlone = "one";
constexpr const char* kEven = "even-pp";

// Every rank waits here for rank 0 without using its core, so that rank 0 can work alone.
void wait_for_first(Communicator& world) {
  std::array<std::uint8_t, 1> token{};
  if (world.rank() == 0) {
    for (int rank = 1; rank < world.size(); ++rank) world.send(std::span<std::uint8_t>(token), rank, kTag);
    return;
  }
  Transfer turn = world.irecv(std::span<std::uint8_t>(token), 0, kTag);
  while (!turn.done()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  turn.wait();
}

proto::RunConfig run_config(const MeshMeasurementRequest& request) {
  proto::RunConfig run;
  *run.mutable_model() = request.model;
  run.mutable_passes()->set_without_gradient(static_cast<std::uint32_t>(request.passes.without_gradient));
  run.mutable_passes()->set_with_gradient(static_cast<std::uint32_t>(request.passes.with_gradient));
  run.mutable_train()->set_precision(request.precision);
  run.mutable_train()->set_micro_batch(static_cast<std::uint32_t>(request.micro_batch));
  run.mutable_train()->set_global_batch(static_cast<std::uint32_t>(request.micro_batch * request.micro_batches));
  return parse_run_config("bench", to_text(run), {});
}

double core_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// A mesh under measurement on this rank.
struct Setting {
  MeshMeasurement measured;
  std::unique_ptr<MeshTraining> training;  // null: this rank has no part in it
  std::vector<MicroBatch> batches;         // this data rank's, the same in every step
};

std::vector<MicroBatch> random_batches(const MeshMeasurementRequest& request, const MeshTraining& training) {
  const ModelConfig& config = training.model().config();
  const std::int64_t count = request.micro_batch * config.context;
  std::vector<MicroBatch> batches;
  for (std::int64_t i = 0; i < training.micro_batches(); ++i) {
    const auto stream = static_cast<std::uint64_t>(training.ranks().place().data * training.micro_batches() + i);
    batches.push_back({.tokens = random_tokens(count, config.vocab, 2 * stream),
                       .targets = random_tokens(count, config.vocab, 2 * stream + 1)});
  }
  return batches;
}

Setting make_setting(const MeshMeasurementRequest& request, const std::string& axis, Communicator& world) {
  proto::RunConfig config = run_config(request);
  Setting setting;
  setting.measured.name = axis == kAlone ? axis : fmt::format("{}{}", axis, world.size());
  const auto ranks = static_cast<std::uint32_t>(world.size());
  config.mutable_mesh()->set_data(1);
  if (axis == "tp") config.mutable_mesh()->set_tensor(ranks);
  if (axis == "dp") config.mutable_mesh()->set_data(ranks);
  if (axis == "pp" || axis == kEven) config.mutable_mesh()->set_pipeline(ranks);
  if (axis == kEven) config.mutable_mesh()->set_placement(proto::MeshConfig::EVEN);
  setting.training = std::make_unique<MeshTraining>(config, world, request.device);
  setting.measured.detail = setting.training->stages();
  setting.training->model().initialize(1);
  setting.batches = random_batches(request, *setting.training);
  return setting;
}

void train_step(MeshTraining& training, std::span<const MicroBatch> batches) {
  training.accumulate_gradients(batches);
  training.update(1e-4, clip_scale(training.gradient_norm(), 1.0));
  training.model().allocator().synchronize();
}

MeshStepTime time_step(Setting& setting, Communicator& world) {
  wait_for_first(world);
  const bool alone = setting.measured.name == kAlone;
  if (!alone) world.barrier();
  const auto start = std::chrono::steady_clock::now();
  const double core_start = core_seconds();
  if (setting.training != nullptr) train_step(*setting.training, setting.batches);
  std::array<double, 1> used = {core_seconds() - core_start};
  if (!alone) world.barrier();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (alone) wait_for_first(world);  // asleep: whoever waits in a reduction keeps its core busy
  world.all_reduce(std::span<double>(used), Reduction::kMax);
  return {seconds, used[0]};
}

}  // namespace

std::vector<double> MeshMeasurement::all(double MeshStepTime::*which) const {
  std::vector<double> values;
  for (const MeshStepTime& time : times) values.push_back(time.*which);
  return values;
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

std::vector<double> ratios(const MeshMeasurement& mesh, const MeshMeasurement& one, int ranks,
                           double MeshStepTime::*which) {
  std::vector<double> result;
  for (std::size_t i = 0; i < mesh.times.size(); ++i) {
    result.push_back(mesh.times[i].*which * ranks / (one.times[i].*which));
  }
  return result;
}

std::vector<double> even_over_placed(const std::vector<MeshMeasurement>& meshes) {
  const auto with = [&](const std::string& axis) {
    return std::ranges::find_if(meshes, [&](const MeshMeasurement& one) { return one.name.starts_with(axis); });
  };
  const auto even = with(kEven);
  const auto placed = with("pp");
  std::vector<double> result;
  if (even == meshes.end() || placed == meshes.end()) return result;
  for (std::size_t i = 0; i < even->times.size(); ++i) {
    result.push_back(even->times[i].seconds / placed->times[i].seconds);
  }
  return result;
}

std::vector<MeshMeasurement> measure_meshes(const MeshMeasurementRequest& request, Communicator& world,
                                            const std::function<void()>& on_start) {
  if (world.size() < 2) reject_input("bench train --mesh: one rank has nothing to share");
  const auto alone = world.split(world.rank(), 0);
  std::vector<Setting> settings(1);
  settings[0].measured.name = kAlone;
  if (world.rank() == 0) settings[0] = make_setting(request, kAlone, *alone);
  for (const std::string& axis : request.axes) settings.push_back(make_setting(request, axis, world));
  on_start();
  std::vector<std::size_t> order(settings.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (int repetition = -1; repetition < request.repetitions; ++repetition) {
    // There and back, so that a machine that slows down or speeds up favours none.
    if (repetition >= 0) std::ranges::reverse(order);
    for (const std::size_t index : order) {
      const MeshStepTime time = time_step(settings[index], world);
      if (repetition >= 0) settings[index].measured.times.push_back(time);  // the first one fills caches
    }
  }
  std::vector<MeshMeasurement> measured;
  for (Setting& setting : settings) measured.push_back(std::move(setting.measured));
  return measured;
}

}  // namespace kvloom
