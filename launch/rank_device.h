// Where the ranks of a verb compute, as its user says: --device, how a GPU computes, --share-gpus.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "launch/gpu_options.h"
#include "launch/ranks.h"

namespace kvloom {

struct RankDeviceOptions {
  std::string name = "cpu";
  GpuOptions gpu;
  bool share = false;

  void add_to(CLI::App& verb);
  // This rank's own. Throws as device_of_rank does.
  Device of(const World& world) const {
    return device_of_rank(name, world, share ? GpuSharing::kYes : GpuSharing::kNo);
  }
  GpuSetting setting(const World& world) const { return gpu.setting(world.communicator().rank()); }
};

}  // namespace kvloom
