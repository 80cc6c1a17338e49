// Ranks that compute on GPUs: which one each takes, and how their tensors reach one another.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/allocator.h"
#include "core/device.h"
#include "parallel/communicator.h"
#include "parallel/nccl_communicator.h"

namespace kvloom {

// A rank among those of its machine, of a world that may span several.
struct LocalRank {
  int rank = 0;
  int size = 1;
  int world_size = 1;
};

enum class GpuSharing : std::uint8_t {
  kNo,   // one GPU a rank
  kYes,  // ranks that outnumber the GPUs take turns on them: to try things out, slowly
};

// What `text` (core/device_choice.h) means to a rank whose machine has `gpus` GPUs, which all of its ranks see: "cuda"
// is the GPU with the rank's own number. Throws InputError for a numbered GPU and several ranks, and, unless they may
// share, for more ranks than GPUs. A machine without any is left to whoever makes the allocator.
Device device_of_rank(const std::string& text, const LocalRank& place, int gpus, GpuSharing sharing);

// Makes, of the ranks of a world that reaches the host's memory, a communicator of the same ranks in the same order
// that reaches the allocator's, in the order of the work on its tensors, and the host's. Collective; both outlive what
// it returns.
using ConnectRanks = std::function<std::unique_ptr<Communicator>(Communicator& world, Allocator& allocator)>;

// By NCCL, each rank on its allocator's GPU.
ConnectRanks connect_by_nccl(const NcclOptions& options);

}  // namespace kvloom
