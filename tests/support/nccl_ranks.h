// Ranks over NCCL for tests: a program that was started alone where there is a GPU starts itself as ranks that are
// processes (`--ranks=N`, 2 without it) and share the GPUs there are; NCCL takes ranks that share one for ranks of
// several machines, which NCCL_HOSTID tells it. Started as a rank by some launcher it is that rank.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/cuda_stream.h"
#include "parallel/nccl_communicator.h"
#include "parallel/rendezvous.h"
#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace kvloom::test {

inline std::optional<MeetingPlace> nccl_place() {
  return meeting_place([](const char* name) { return std::getenv(name); });
}

// Empty: this process is a rank and has a GPU.
inline std::string nccl_unavailable() {
  const CudaPresence presence = cuda_presence();
  return presence.devices > 0 && nccl_place().has_value() ? "" : presence.reason;
}

// This process as a rank of the world.
struct NcclWorld {
  NcclWorld() : gpu(nccl_place()->local_rank % cuda_presence().devices), compute(gpu) {
    const MeetingPlace where = *nccl_place();
    const std::string id = meet(where, where.rank == 0 ? make_nccl_id() : "");
    communicator =
        make_nccl_communicator(id, where.rank, where.world_size, compute, {.limit = std::chrono::seconds(60)});
  }

  int gpu;
  CudaStream compute;
  std::unique_ptr<Communicator> communicator;
};

// Made by the first test that runs; `nccl_main` ends it.
inline std::unique_ptr<NcclWorld>& nccl_world_kept() {
  static std::unique_ptr<NcclWorld> world;
  return world;
}

inline NcclWorld* nccl_world() {
  if (nccl_world_kept() == nullptr) nccl_world_kept() = std::make_unique<NcclWorld>();
  return nccl_world_kept().get();
}

inline int ranks_asked_for(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]).rfind("--ranks=", 0) == 0) return std::atoi(argv[i] + 8);
  }
  return 2;
}

// 0 when every rank has passed.
inline int run_as_processes(int ranks) {
  const TemporaryFolder folder;
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      setenv("RANK", std::to_string(rank).c_str(), 1);
      setenv("WORLD_SIZE", std::to_string(ranks).c_str(), 1);
      setenv("KVLOOM_RENDEZVOUS_FILE", (folder.path() / "meet").c_str(), 1);
      setenv("NCCL_HOSTID", std::to_string(rank).c_str(), 1);
      setenv("NCCL_SOCKET_IFNAME", "lo", 1);
      setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);  // this and the next as launch/ranks.cc does
      setenv("CUDA_MODULE_LOADING", "EAGER", 0);
      start_again();
      _exit(127);
    }
    children.push_back(child);
  }
  int worst = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    int status = 0;
    waitpid(children[static_cast<std::size_t>(rank)], &status, 0);
    const int result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (result != 0) std::fprintf(stderr, "rank %d of %d ended with %d\n", rank, ranks, result);
    worst = std::max(worst, result);
  }
  return worst;
}

// What such a program's `main` does.
inline int nccl_main(int argc, char** argv) {
  const int ranks = ranks_asked_for(argc, argv);
  ::testing::InitGoogleTest(&argc, argv);
  const bool starts_ranks = !nccl_place().has_value() && !::testing::GTEST_FLAG(list_tests);
  if (starts_ranks && cuda_presence().devices > 0) return run_as_processes(ranks);
  const int result = RUN_ALL_TESTS();
  nccl_world_kept().reset();
  return result;
}

}  // namespace kvloom::test
