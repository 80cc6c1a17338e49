#include "parallel/device_ranks.h"

#include "core/cuda_allocator.h"
#include "core/device_choice.h"
#include "kernels/error.h"

namespace kvloom {

Device device_of_rank(const std::string& text, const LocalRank& place, int gpus, GpuSharing sharing) {
  Device device = parse_device(text);
  if (device.kind == Device::Kind::kCpu || place.world_size == 1) return device;
  if (text != "cuda") {
    reject_input("device: {}: {} ranks; right is cuda, of which each rank takes one", text, place.world_size);
  }
  if (gpus == 0) return device;
  if (place.size > gpus && sharing == GpuSharing::kNo) {
    reject_input("device: cuda: {} ranks on a machine that has {} GPU{}; right is one GPU a rank", place.size, gpus,
                 gpus == 1 ? "" : "s");
  }
  device.index = place.rank % gpus;
  return device;
}

ConnectRanks connect_by_nccl(const NcclOptions& options) {
  return [options](Communicator& world, Allocator& allocator) {
    auto* gpu = dynamic_cast<CachingCudaAllocator*>(&allocator);
    if (gpu == nullptr) fail("NCCL: the tensors are on {}; right is a GPU", name_of(allocator.device()));
    NcclOptions beside = options;
    beside.make_room = [gpu] { gpu->trim(); };
    return make_nccl_communicator(world, gpu->stream(), beside);
  };
}

}  // namespace kvloom
