#include "launch/mesh_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <map>

#include "parallel/device_kind.h"

namespace kvloom {
namespace {

std::string upper(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return text;
}

std::vector<std::string> device_names() {
  std::vector<std::string> names;
  for (const DeviceKind& kind : device_kinds()) names.emplace_back(kind.name);
  return names;
}

}  // namespace

template <typename T>
CLI::Option* MeshOptions::add(CLI::App& verb, const std::string& flag, const std::string& field,
                              const std::string& description) {
  return verb.add_option_function<T>(
      flag, [this, field](const T& value) { overrides_.push_back(fmt::format("mesh.{}={}", field, value)); },
      fmt::format("{} (mesh.{})", description, field));
}

void MeshOptions::add_flag(CLI::App& verb, const std::string& flag, const std::string& field,
                           const std::string& description) {
  verb.add_flag_callback(
      flag, [this, field] { overrides_.push_back(fmt::format("mesh.{}=true", field)); },
      fmt::format("{} (mesh.{})", description, field));
}

void MeshOptions::add_to(CLI::App& verb) {
  add<std::uint32_t>(verb, "--dp", "data", "Data-parallel ranks; 0: what is left of the world");
  add<std::uint32_t>(verb, "--pp", "pipeline", "Pipeline ranks");
  add<std::uint32_t>(verb, "--tp", "tensor", "Tensor-parallel ranks");
  add_flag(verb, "--sequence-parallel", "sequence_parallel",
           "Tensor ranks share the rows of hidden states between matrices");
  add_flag(verb, "--zero", "shard_optimizer", "ZeRO-1: data ranks share the optimizer state");
  add_pipeline(verb);
  add_devices(verb);
}

std::vector<std::string> MeshOptions::after(std::vector<std::string> overrides) const {
  overrides.insert(overrides.end(), overrides_.begin(), overrides_.end());
  return overrides;
}

void MeshOptions::add_pipeline(CLI::App& verb) {
  const std::map<std::string, std::string> schedules = {{"1f1b", "ONE_FORWARD_ONE_BACKWARD"}, {"gpipe", "GPIPE"}};
  verb.add_option_function<std::string>(
          "--schedule",
          [this, schedules](const std::string& name) { overrides_.push_back("mesh.schedule=" + schedules.at(name)); },
          "1f1b or gpipe (mesh.schedule)")
      ->check(CLI::IsMember({"1f1b", "gpipe"}));
  add<std::uint32_t>(verb, "--stages-per-rank", "stages_per_rank",
                     "Stages of a pipeline rank, more than one for the interleaved schedule");
  // Given here it counts, whatever boundaries the file names.
  CLI::Option* placement = verb.add_option_function<std::string>(
      "--placement",
      [this](const std::string& name) {
        overrides_.push_back("mesh.placement=" + upper(name));
        overrides_.emplace_back("mesh.boundaries=");
      },
      "auto: stages that make the step fastest by prediction; even: equal numbers of layers (mesh.placement)");
  placement->check(CLI::IsMember({"auto", "even"}));
  add<std::string>(verb, "--boundaries", "boundaries", "First layer of each stage after the first: 6,12,18")
      ->excludes(placement);
}

void MeshOptions::add_devices(CLI::App& verb) {
  verb.add_option_function<std::string>(
          "--devices", [this](const std::string& name) { overrides_.push_back("mesh.devices=" + upper(name)); },
          fmt::format("What predictions are made for: {} (mesh.devices)", fmt::join(device_names(), ", ")))
      ->check(CLI::IsMember(device_names()));
  add<double>(verb, "--device-tflops", "device_tflops", "10^12 operations a second of a rank, instead of its device's");
  add<double>(verb, "--link-gbps", "link_gbps", "10^9 bits a second from rank to rank, instead of the device's");
  add<double>(verb, "--memory-gib", "memory_gib", "Memory of a rank that auto fits into, instead of its device's");
}

const char* const kStartingRanks =
    "Ranks are processes that all run the same command; --dp x --pp x --tp is their number. Tensor ranks are\n"
    "neighbours and talk the most: keep --tp within a machine. The program, and every file that the config names,\n"
    "stand under the same path on each machine. kvloom plan takes the same flags and starts nothing.\n"
    "  one machine       mpirun -n 4 kvloom train --config run.pbtxt --pp 4\n"
    "  several machines  mpirun -n 16 --hostfile hosts kvloom train --config run.pbtxt --tp 8 --pp 2\n"
    "                    hosts: a line like \"node1 slots=8\" for each machine\n"
    "  Slurm             srun --mpi=pmix -N 2 --ntasks-per-node=8 kvloom train --config run.pbtxt --tp 8 --pp 2\n"
    "                    sbatch launch/recipes/train.sbatch --config run.pbtxt --tp 8 --pp 2\n";

}  // namespace kvloom
