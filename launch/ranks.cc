#include "launch/ranks.h"

#include <fmt/format.h>
#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

#include "core/cuda_stream.h"
#include "kernels/error.h"
#include "parallel/rendezvous.h"

namespace kvloom {
namespace {

// Ranks of one machine share its cores, unless mpirun bound them or the user said otherwise.
void share_cores(int local_size) {
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return;
  const int share = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / local_size);
  omp_set_num_threads(std::min(omp_get_num_procs(), share));
}

// This process among those that a launcher started with it, by the environment alone: Open MPI's variables, those of
// MPICH and its kin, and where a rank says that it is one (PMIx, RANK) what rank_numbers knows. Slurm's own variables
// are there in a shell of a job, too, which is no rank.
RankNumbers rank_in_environment() {
  const auto get = [](const char* name) { return std::getenv(name); };
  for (const auto& [rank, size] :
       {std::pair{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}, {"PMI_RANK", "PMI_SIZE"}}) {
    if (get(rank) != nullptr && get(size) != nullptr) {
      return {.rank = std::atoi(get(rank)), .world_size = std::atoi(get(size))};
    }
  }
  if (get("PMIX_RANK") == nullptr && get("RANK") == nullptr) return {};
  return rank_numbers(get).value_or(RankNumbers{});
}

}  // namespace

void require_one_rank() {
  const RankNumbers numbers = rank_in_environment();
  if (numbers.world_size <= 1) return;
  if (numbers.rank != 0) throw CLI::Success();
  reject_input("runs on one rank, and was started on {}; start it without mpirun", numbers.world_size);
}

void take_down_on_failure(World& world, const std::function<void()>& work) {
  if (world.communicator().size() == 1) return work();
  try {
    work();
  } catch (const InputError& error) {
    world.abort(error.what(), 2);
  } catch (const std::exception& error) {
    world.abort(error.what(), 1);
  }
}

Device device_of_rank(const std::string& text, const World& world, GpuSharing sharing) {
  const Communicator& ranks = world.communicator();
  const LocalRank place{.rank = world.local_rank(), .size = world.local_size(), .world_size = ranks.size()};
  if (text == "cpu" || ranks.size() == 1) return device_of_rank(text, place, 0, sharing);
  // One hardware queue a stream, as far as they go: in a queue that two share, a message that waits for its sender
  // holds up what the sender waits for.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  // A kernel that is loaded at its first use waits for what the device does, and that may wait for other ranks.
  setenv("CUDA_MODULE_LOADING", "EAGER", 0);
  const int gpus = cuda_presence().devices;
  const Device device = device_of_rank(text, place, gpus, sharing);
  // NCCL refuses two ranks of one machine on one GPU; of two machines it never looks.
  if (place.size > gpus) setenv("NCCL_HOSTID", fmt::format("rank-{}", ranks.rank()).c_str(), 1);
  return device;
}

std::function<void(const std::string&)> end_of_rank(const World& world) {
  static constexpr std::chrono::seconds kGrace{5};
  return [rank = world.communicator().rank(), caller = std::this_thread::get_id()](const std::string& reason) {
    if (std::this_thread::get_id() == caller) return;
    std::this_thread::sleep_for(kGrace);
    fmt::print(stderr, "rank {}: {}\n", rank, reason);
    std::fflush(nullptr);
    std::_Exit(1);
  };
}

void run_in_world(const std::function<void(World&)>& work) {
  World world(launch_environment([](const char* name) { return std::getenv(name); }));
  share_cores(world.local_size());
  take_down_on_failure(world, [&] { work(world); });
}

}  // namespace kvloom
