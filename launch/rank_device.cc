#include "launch/rank_device.h"

#include <fmt/format.h>

namespace kvloom {

namespace {

constexpr const char* kWhere = "cpu, cuda or cuda:<index>: where to compute";

}  // namespace

void RankDeviceOptions::add_device_to(CLI::App& verb, const std::string& where) {
  verb.add_option("--device", name, where)->capture_default_str();
  gpu.add_to(verb);
}

void RankDeviceOptions::add_device_to(CLI::App& verb) { add_device_to(verb, kWhere); }

CLI::Option* RankDeviceOptions::add_sharing_to(CLI::App& verb) {
  return verb.add_flag("--share-gpus", share,
                       "Let ranks that outnumber their machine's GPUs share them, slowly: to try several ranks out");
}

void RankDeviceOptions::add_to(CLI::App& verb) {
  add_device_to(verb,
                fmt::format("{}; of several ranks with cuda each takes the GPU of its number on its machine", kWhere));
  add_sharing_to(verb);
}

RankDevice RankDeviceOptions::in_mesh(const World& world, NcclOptions nccl) const {
  nccl.on_failure = end_of_rank(world);
  return {.device = of(world), .gpu = setting(world), .connect = connect_by_nccl(nccl)};
}

}  // namespace kvloom
