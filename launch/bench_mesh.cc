#include "launch/bench_mesh.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace kvloom {
namespace {

void write_text(const std::vector<MeshMeasurement>& settings, int ranks, double tokens, std::ostream& out) {
  fmt::print(out, "{:<8} {:>9} {:>9} {:>16} {:>9} {:>9} {:>9}\n", "mesh", "s/step", "tokens/s",
             fmt::format("of one's/{}", ranks), "least", "most", "core s");
  for (const MeshMeasurement& setting : settings) {
    const double seconds = median(setting.all(&MeshStepTime::seconds));
    fmt::print(out, "{:<8} {:>9.3f} {:>9.0f}", setting.name, seconds, tokens / seconds);
    const std::vector<double> all = ratios(setting, settings.front(), ranks, &MeshStepTime::seconds);
    if (&setting == &settings.front()) {
      fmt::print(out, " {:>16} {:>9} {:>9}", "", "", "");
    } else {
      fmt::print(out, " {:>16.3f} {:>9.3f} {:>9.3f}", median(all), *std::ranges::min_element(all),
                 *std::ranges::max_element(all));
    }
    fmt::print(out, " {:>9.3f}  {}\n", median(setting.all(&MeshStepTime::core_seconds)), setting.detail);
  }
  const std::vector<double> even = even_over_placed(settings);
  if (even.empty()) return;
  fmt::print(out, "even stages took {:.3f} times as long as placed ones ({:.3f} to {:.3f})\n", median(even),
             *std::ranges::min_element(even), *std::ranges::max_element(even));
}

nlohmann::ordered_json to_json(const MeshMeasurement& setting, const MeshMeasurement& one, int ranks, double tokens) {
  const double seconds = median(setting.all(&MeshStepTime::seconds));
  nlohmann::ordered_json mesh = {{"mesh", setting.name},
                                 {"seconds_per_step", seconds},
                                 {"tokens_per_second", tokens / seconds},
                                 {"stages", setting.detail},
                                 {"core_seconds", median(setting.all(&MeshStepTime::core_seconds))},
                                 {"all_seconds", setting.all(&MeshStepTime::seconds)}};
  if (&setting == &one) return mesh;
  const std::vector<double> all = ratios(setting, one, ranks, &MeshStepTime::seconds);
  mesh["relative_to_ideal"] = median(all);
  mesh["all_relative_to_ideal"] = all;
  mesh["core_seconds_relative_to_ideal"] = median(ratios(setting, one, ranks, &MeshStepTime::core_seconds));
  return mesh;
}

void write_json(const std::vector<MeshMeasurement>& settings, int ranks, double tokens, std::ostream& out) {
  nlohmann::ordered_json meshes = nlohmann::ordered_json::array();
  for (const MeshMeasurement& setting : settings) meshes.push_back(to_json(setting, settings.front(), ranks, tokens));
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
  const MeshMeasurementRequest& mesh = request.mesh;
  const double tokens = static_cast<double>(mesh.micro_batch * mesh.micro_batches * mesh.model.context());
  const bool on_cores = mesh.device.device.kind == Device::Kind::kCpu;
  const bool writes_text = world.rank() == 0 && request.form == BenchForm::kText;
  const auto print_head = [&] {
    if (!writes_text) return;
    fmt::print(out, "{} micro-batches of {} x {} tokens, map {}; {}, {} ranks, {} repetitions\n", mesh.micro_batches,
               mesh.micro_batch, mesh.model.context(), mesh.model.kv_map(),
               on_cores ? "one core a rank" : "ranks on GPUs", world.size(), mesh.repetitions);
    out.flush();
  };
  const std::vector<MeshMeasurement> measured = measure_meshes(mesh, world, print_head);
  if (writes_text) write_text(measured, world.size(), tokens, out);
  if (world.rank() == 0 && request.form == BenchForm::kJson) write_json(measured, world.size(), tokens, out);
}

}  // namespace kvloom
