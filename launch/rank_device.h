// Where the ranks of a verb compute, as its user says: --device, how a GPU computes, --share-gpus.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "launch/gpu_options.h"
#include "launch/ranks.h"
#include "train/mesh_training.h"

namespace kvloom {

struct RankDeviceOptions {
  std::string name = "cpu";
  GpuOptions gpu;
  bool share = false;

  // Of verbs whose ranks are several.
  void add_to(CLI::App& verb);
  // Of verbs that run on one, --device and how a GPU computes; and the flag --share-gpus.
  void add_device_to(CLI::App& verb);
  CLI::Option* add_sharing_to(CLI::App& verb);
  // This rank's own. Throws as device_of_rank does.
  Device of(const World& world) const {
    return device_of_rank(name, world, share ? GpuSharing::kYes : GpuSharing::kNo);
  }
  GpuSetting setting(const World& world) const { return gpu.setting(world.communicator().rank()); }
  // What a mesh needs of this rank: the device, and NCCL between those of several ranks, which ends the rank where NCCL
  // fails or an operation is stuck for longer than `nccl`'s limit.
  RankDevice in_mesh(const World& world, NcclOptions nccl = {}) const;

 private:
  void add_device_to(CLI::App& verb, const std::string& where);
};

}  // namespace kvloom
