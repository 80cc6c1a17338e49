#include "launch/bench_mesh.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <span>
#include <thread>

#include "core/config.h"
#include "launch/bench_support.h"
#include "train/mesh_training.h"

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

struct StepTime {
  double seconds;  // until all ranks have ended it, as rank 0 sees it
  // Of the rank that used its core longest: on a machine that others use too, what the step took. Of ranks on GPUs only
  // what their hosts did.
  double core_seconds;
};

double core_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// A mesh under measurement on this rank.
struct Setting {
  std::string name;
  std::string detail;                      // where the stages begin
  std::unique_ptr<MeshTraining> training;  // null: this rank has no part in it
  std::vector<MicroBatch> batches;         // this data rank's, the same in every step
  std::vector<StepTime> times;             // by repetition

  std::vector<double> all(double StepTime::*which) const {
    std::vector<double> values;
    for (const StepTime& time : times) values.push_back(time.*which);
    return values;
  }
};

std::vector<MicroBatch> random_batches(const BenchMeshRequest& request, const MeshTraining& training) {
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

Setting make_setting(const BenchMeshRequest& request, const std::string& axis, Communicator& world) {
  proto::RunConfig config = run_config(request);
  Setting setting;
  setting.name = axis == kAlone ? axis : fmt::format("{}{}", axis, world.size());
  const auto ranks = static_cast<std::uint32_t>(world.size());
  config.mutable_mesh()->set_data(1);
  if (axis == "tp") config.mutable_mesh()->set_tensor(ranks);
  if (axis == "dp") config.mutable_mesh()->set_data(ranks);
  if (axis == "pp" || axis == kEven) config.mutable_mesh()->set_pipeline(ranks);
  if (axis == kEven) config.mutable_mesh()->set_placement(proto::MeshConfig::EVEN);
  setting.training = std::make_unique<MeshTraining>(config, world, request.device);
  setting.detail = setting.training->stages();
  setting.training->model().initialize(1);
  setting.batches = random_batches(request, *setting.training);
  return setting;
}

void train_step(MeshTraining& training, std::span<const MicroBatch> batches) {
  training.accumulate_gradients(batches);
  training.update(1e-4, clip_scale(training.gradient_norm(), 1.0));
  training.model().allocator().synchronize();
}

StepTime time_step(Setting& setting, Communicator& world) {
  wait_for_first(world);
  const bool alone = setting.name == kAlone;
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

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// Of each repetition: the time in units of one rank's, divided by the number of ranks.
std::vector<double> ratios(const Setting& setting, const Setting& one, int ranks, double StepTime::*which) {
  std::vector<double> result;
  for (std::size_t i = 0; i < setting.times.size(); ++i) {
    result.push_back(setting.times[i].*which * ranks / (one.times[i].*which));
  }
  return result;
}

// The time with equal numbers of layers a stage over that with stages placed; by repetition, if both were measured.
std::vector<double> even_over_placed(const std::vector<Setting>& settings) {
  const auto with = [&](const std::string& axis) {
    return std::ranges::find_if(settings, [&](const Setting& one) { return one.name.starts_with(axis); });
  };
  const auto even = with(kEven);
  const auto placed = with("pp");
  std::vector<double> result;
  if (even == settings.end() || placed == settings.end()) return result;
  for (std::size_t i = 0; i < even->times.size(); ++i) {
    result.push_back(even->times[i].seconds / placed->times[i].seconds);
  }
  return result;
}

void write_text(const std::vector<Setting>& settings, int ranks, double tokens, std::ostream& out) {
  fmt::print(out, "{:<8} {:>9} {:>9} {:>16} {:>9} {:>9} {:>9}\n", "mesh", "s/step", "tokens/s",
             fmt::format("of one's/{}", ranks), "least", "most", "core s");
  for (const Setting& setting : settings) {
    const double seconds = median(setting.all(&StepTime::seconds));
    fmt::print(out, "{:<8} {:>9.3f} {:>9.0f}", setting.name, seconds, tokens / seconds);
    const std::vector<double> all = ratios(setting, settings.front(), ranks, &StepTime::seconds);
    if (&setting == &settings.front()) {
      fmt::print(out, " {:>16} {:>9} {:>9}", "", "", "");
    } else {
      fmt::print(out, " {:>16.3f} {:>9.3f} {:>9.3f}", median(all), *std::ranges::min_element(all),
                 *std::ranges::max_element(all));
    }
    fmt::print(out, " {:>9.3f}  {}\n", median(setting.all(&StepTime::core_seconds)), setting.detail);
  }
  const std::vector<double> even = even_over_placed(settings);
  if (even.empty()) return;
  fmt::print(out, "even stages took {:.3f} times as long as placed ones ({:.3f} to {:.3f})\n", median(even),
             *std::ranges::min_element(even), *std::ranges::max_element(even));
}

nlohmann::ordered_json to_json(const Setting& setting, const Setting& one, int ranks, double tokens) {
  const double seconds = median(setting.all(&StepTime::seconds));
  nlohmann::ordered_json mesh = {{"mesh", setting.name},
                                 {"seconds_per_step", seconds},
                                 {"tokens_per_second", tokens / seconds},
                                 {"stages", setting.detail},
                                 {"core_seconds", median(setting.all(&StepTime::core_seconds))},
                                 {"all_seconds", setting.all(&StepTime::seconds)}};
  if (&setting == &one) return mesh;
  const std::vector<double> all = ratios(setting, one, ranks, &StepTime::seconds);
  mesh["relative_to_ideal"] = median(all);
  mesh["all_relative_to_ideal"] = all;
  mesh["core_seconds_relative_to_ideal"] = median(ratios(setting, one, ranks, &StepTime::core_seconds));
  return mesh;
}

void write_json(const std::vector<Setting>& settings, int ranks, double tokens, std::ostream& out) {
  nlohmann::ordered_json meshes = nlohmann::ordered_json::array();
  for (const Setting& setting : settings) meshes.push_back(to_json(setting, settings.front(), ranks, tokens));
  nlohmann::ordered_json all = {{"ranks", ranks}, {"tokens_per_step", tokens}, {"meshes", meshes}};
  const std::vector<double> even = even_over_placed(settings);
  if (!even.empty()) {
    all["even_over_placed"] = median(even);
    all["all_even_over_placed"] = even;
  }
  out << all.dump(2) << '\n';
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
  const bool on_cores = request.device.device.kind == Device::Kind::kCpu;
  const bool writes_text = world.rank() == 0 && request.form == BenchForm::kText;
  if (writes_text) {
    fmt::print(out, "{} micro-batches of {} x {} tokens, map {}; {}, {} ranks, {} repetitions\n", request.micro_batches,
               request.micro_batch, request.model.context(), request.model.kv_map(),
               on_cores ? "one core a rank" : "ranks on GPUs", world.size(), request.repetitions);
    out.flush();
  }
  std::vector<std::size_t> order(settings.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (int repetition = -1; repetition < request.repetitions; ++repetition) {
    // There and back, so that a machine that slows down or speeds up favours none.
    if (repetition >= 0) std::ranges::reverse(order);
    for (const std::size_t index : order) {
      Setting& setting = settings[index];
      const StepTime time = time_step(setting, world);
      if (repetition >= 0) setting.times.push_back(time);  // the first one fills caches
    }
  }
  if (writes_text) write_text(settings, world.size(), tokens, out);
  if (world.rank() == 0 && request.form == BenchForm::kJson) write_json(settings, world.size(), tokens, out);
}

}  // namespace kvloom
