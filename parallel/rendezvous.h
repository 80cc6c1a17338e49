// How ranks that no MPI started find one another: each knows its number and where to meet, and rank 0's bytes (NCCL's
// unique id) reach all. Under MPI the same is a broadcast (broadcast_bytes in communicator.h).
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>

namespace kvloom {

// What a launcher other than MPI's has told a rank of itself.
struct RankNumbers {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;  // among the ranks of this machine: which GPU
};

struct MeetingPlace {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;

  // Either a file in a folder that all ranks see, which need not exist, or where rank 0 listens.
  std::string file;
  std::string address;
  int port = 0;

  std::chrono::milliseconds limit = std::chrono::minutes(5);  // how long the ranks wait for one another
};

// `lookup` gives the value of an environment variable, or null. Nothing when neither RANK nor a Slurm step's
// SLURM_PROCID is set. Looks at RANK, WORLD_SIZE, LOCAL_RANK (RANK where it is missing), or SLURM_PROCID, SLURM_NTASKS,
// SLURM_LOCALID. Throws InputError naming the variable that is missing or makes no sense.
std::optional<RankNumbers> rank_numbers(const std::function<const char*(const char*)>& lookup);

// The same with where to meet. Looks at these too:
// - KVLOOM_RENDEZVOUS_FILE, or MASTER_ADDR and MASTER_PORT; under Slurm the step's first machine and a port made of the
//   job's number where they are missing;
// - KVLOOM_RENDEZVOUS_SECONDS: the limit.
// Throws InputError naming the variable that is missing or makes no sense.
std::optional<MeetingPlace> meeting_place(const std::function<const char*(const char*)>& lookup);

// The first name in Slurm's notation of machines: "gpu[03-07,12],cpu1" gives "gpu03".
std::string first_machine(const std::string& machines);

// Rank 0's bytes, when every rank has come. A rank that does not come within the limit, a number that two ranks have
// and a world size that differs throw one Error, the same on all ranks that came, naming the rank and the place.
// Connections from strangers and files that an earlier run left are passed over.
std::string meet(const MeetingPlace& place, const std::string& bytes);

}  // namespace kvloom
