// How a process joins its world: under mpirun by MPI, started alone as a world of one that never touches MPI. Ranks
// that were started otherwise (RANK, a Slurm step without MPI) can meet, but on CPUs have nothing to talk over:
// refused.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "parallel/communicator.h"
#include "parallel/rendezvous.h"

namespace kvloom {

// What the launcher saw in its environment.
struct LaunchEnvironment {
  bool started_by_mpi = false;
  std::optional<RankNumbers> other_ranks;  // of a rank that no MPI started
};

// `lookup` gives the value of an environment variable, or null. Open MPI, MPICH and its kin, and PMIx are recognised,
// and what `rank_numbers` knows. Throws as that does.
LaunchEnvironment launch_environment(const std::function<const char*(const char*)>& lookup);

struct WorldOptions {
  // Elements that one MPI call moves at most; larger buffers go in pieces.
  std::int64_t largest_count = std::numeric_limits<std::int32_t>::max();
};

// A rank's membership in the world, for as long as it lives.
class RankSession {
 public:
  virtual ~RankSession() = default;
  virtual Communicator& communicator() = 0;
  virtual int local_rank() const = 0;  // among the ranks that share this machine's memory
  virtual int local_size() const = 0;
  [[noreturn]] virtual void abort(const std::string& message, int exit_status) = 0;
};

// Starts MPI. Throws Error when MPI refuses, or naming KVLOOM_MPI when the build has none.
std::unique_ptr<RankSession> start_mpi(const WorldOptions& options);

// One a process. Its communicators must not outlive it.
class World {
 public:
  // Throws InputError for several ranks that no MPI started.
  explicit World(const LaunchEnvironment& environment, const WorldOptions& options = {});

  Communicator& communicator() { return session_->communicator(); }
  const Communicator& communicator() const { return session_->communicator(); }
  int local_rank() const { return session_->local_rank(); }
  int local_size() const { return session_->local_size(); }

  // Writes the message to standard error, with the rank before it where there are several, and takes every rank down.
  // Of ranks that fail with the same message at about the same time, the lowest writes it. A World that goes away while
  // an exception flies takes every rank down without a word.
  [[noreturn]] void abort(const std::string& message, int exit_status = 1) {
    session_->abort(message, exit_status);
    std::terminate();  // not reached; g++ 12 does not believe a virtual [[noreturn]]
  }

 private:
  std::unique_ptr<RankSession> session_;
};

}  // namespace kvloom
