#include "launch/bench_mesh.h"

#include <fmt/ostream.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "core/config.h"
#include "kernels/random.h"
#include "parallel/placement.h"
#include "train/mesh_training.h"

namespace kvloom {
namespace {

constexpr int kTag = 0;
constexpr const char* kAlone = "one";

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

proto::RunConfig run_config(const BenchMeshRequest& request) {
  proto::RunConfig run;
  *run.mutable_model() = request.model;
  run.mutable_passes()->set_without_gradient(static_cast<std::uint32_t>(request.passes.without_gradient));
  run.mutable_passes()->set_with_gradient(static_cast<std::uint32_t>(request.passes.with_gradient));
  run.mutable_train()->set_precision(request.precision);
  run.mutable_train()->set_micro_batch(static_cast<std::uint32_t>(request.micro_batch));
  run.mutable_train()->set_global_batch(static_cast<std::uint32_t>(request.micro_batch * request.micro_batches));
  return parse_run_config("bench", to_text(run), {});
}

// Boundaries that make the slowest stage fastest: "8".
std::string placed_boundaries(const BenchMeshRequest& request, int ranks) {
  const StepCounter counter({.model = ModelConfig::from_proto(request.model),
                             .passes = request.passes,
                             .micro_batches = static_cast<int>(request.micro_batches),
                             .sequences = request.micro_batch,
                             .dtype = request.precision == proto::TrainConfig::BF16 ? DType::kBF16 : DType::kF32});
  // Of a core and of memory that ranks share: only their ratio counts.
  const Speeds speeds{.flops_per_second = 1e11, .link_bytes_per_second = 2e9};
  const StageLayout layout = place_stages(counter, speeds, {.ranks = ranks}).layout;
  std::vector<int> first;
  for (int stage = 1; stage < layout.stages(); ++stage) first.push_back(layout.first_layer(stage));
  return fmt::format("{}", fmt::join(first, ","));
}

// A mesh under measurement on this rank.
struct Setting {
  std::string name;
  std::string detail;                      // where the stages begin
  std::unique_ptr<MeshTraining> training;  // null: this rank has no part in it
  std::vector<double> seconds;             // by repetition
};

Setting make_setting(const BenchMeshRequest& request, const std::string& axis, Communicator& world) {
  proto::RunConfig config = run_config(request);
  Setting setting;
  setting.name = axis == kAlone ? axis : fmt::format("{}{}", axis, world.size());
  const auto ranks = static_cast<std::uint32_t>(world.size());
  config.mutable_mesh()->set_data(1);
  if (axis == "tp") config.mutable_mesh()->set_tensor(ranks);
  if (axis == "dp") config.mutable_mesh()->set_data(ranks);
  if (axis == "pp") {
    const std::string boundaries = placed_boundaries(request, world.size());
    config.mutable_mesh()->set_pipeline(ranks);
    config.mutable_mesh()->set_boundaries(boundaries);
    setting.detail = fmt::format("stages from layers 0,{}", boundaries);
  }
  setting.training = std::make_unique<MeshTraining>(config, world);
  setting.training->model().initialize(1);
  return setting;
}

std::vector<MicroBatch> random_batches(const BenchMeshRequest& request, const MeshTraining& training) {
  const ModelConfig& config = training.model().config();
  const auto count = static_cast<std::size_t>(request.micro_batch * config.context);
  std::vector<MicroBatch> batches;
  for (std::int64_t i = 0; i < training.micro_batches(); ++i) {
    const auto stream = static_cast<std::uint64_t>(training.ranks().place().data * training.micro_batches() + i);
    MicroBatch batch;
    for (std::size_t at = 0; at < count; ++at) {
      const double vocab = static_cast<double>(config.vocab);
      batch.tokens.push_back(static_cast<std::int32_t>(uniform(1, stream, at) * vocab));
      batch.targets.push_back(static_cast<std::int32_t>(uniform(2, stream, at) * vocab));
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

void train_step(const BenchMeshRequest& request, MeshTraining& training) {
  training.accumulate_gradients(random_batches(request, training));
  training.update(1e-4, clip_scale(training.gradient_norm(), 1.0));
}

// Seconds until all ranks have ended the step, as rank 0 sees it.
double time_step(const BenchMeshRequest& request, Setting& setting, Communicator& world) {
  wait_for_first(world);
  const bool alone = setting.name == kAlone;
  if (!alone) world.barrier();
  const auto start = std::chrono::steady_clock::now();
  if (setting.training != nullptr) train_step(request, *setting.training);
  if (!alone) world.barrier();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// Of each repetition: the time in units of one rank's, divided by the number of ranks.
std::vector<double> ratios(const Setting& setting, const Setting& one, int ranks) {
  std::vector<double> result;
  for (std::size_t i = 0; i < setting.seconds.size(); ++i) {
    result.push_back(setting.seconds[i] * ranks / one.seconds[i]);
  }
  return result;
}

void write_text(const std::vector<Setting>& settings, int ranks, double tokens, std::ostream& out) {
  fmt::print(out, "{:<5} {:>9} {:>9} {:>16} {:>9} {:>9}\n", "mesh", "s/step", "tokens/s",
             fmt::format("of one's/{}", ranks), "least", "most");
  for (const Setting& setting : settings) {
    const double seconds = median(setting.seconds);
    fmt::print(out, "{:<5} {:>9.3f} {:>9.0f}", setting.name, seconds, tokens / seconds);
    if (&setting != &settings.front()) {
      const std::vector<double> all = ratios(setting, settings.front(), ranks);
      fmt::print(out, " {:>16.3f} {:>9.3f} {:>9.3f}  {}", median(all), *std::ranges::min_element(all),
                 *std::ranges::max_element(all), setting.detail);
    }
    fmt::print(out, "\n");
  }
}

void write_json(const std::vector<Setting>& settings, int ranks, double tokens, std::ostream& out) {
  nlohmann::ordered_json meshes = nlohmann::ordered_json::array();
  for (const Setting& setting : settings) {
    const double seconds = median(setting.seconds);
    nlohmann::ordered_json mesh = {{"mesh", setting.name},
                                   {"seconds_per_step", seconds},
                                   {"tokens_per_second", tokens / seconds},
                                   {"all_seconds", setting.seconds}};
    if (&setting != &settings.front()) {
      const std::vector<double> all = ratios(setting, settings.front(), ranks);
      mesh["relative_to_ideal"] = median(all);
      mesh["all_relative_to_ideal"] = all;
    }
    meshes.push_back(std::move(mesh));
  }
  out << nlohmann::ordered_json{{"ranks", ranks}, {"tokens_per_step", tokens}, {"meshes", meshes}}.dump(2) << '\n';
}

}  // namespace

void bench_mesh(const BenchMeshRequest& request, Communicator& world, std::ostream& out) {
  if (world.size() < 2) reject_input("bench train --mesh: one rank has nothing to share");
  const auto alone = world.split(world.rank(), 0);
  std::vector<Setting> settings(1);
  settings[0].name = kAlone;
  if (world.rank() == 0) settings[0] = make_setting(request, kAlone, *alone);
  for (const std::string& axis : request.axes) settings.push_back(make_setting(request, axis, world));

  const double tokens = static_cast<double>(request.micro_batch * request.micro_batches * request.model.context());
  const bool writes_text = world.rank() == 0 && request.form == BenchForm::kText;
  if (writes_text) {
    fmt::print(out, "{} micro-batches of {} x {} tokens, map {}; one core a rank, {} ranks, {} repetitions\n",
               request.micro_batches, request.micro_batch, request.model.context(), request.model.kv_map(),
               world.size(), request.repetitions);
    out.flush();
  }
  for (int repetition = -1; repetition < request.repetitions; ++repetition) {
    for (Setting& setting : settings) {
      const double seconds = time_step(request, setting, world);
      if (repetition >= 0) setting.seconds.push_back(seconds);  // the first one fills caches
    }
  }
  if (writes_text) write_text(settings, world.size(), tokens, out);
  if (world.rank() == 0 && request.form == BenchForm::kJson) write_json(settings, world.size(), tokens, out);
}

}  // namespace kvloom
