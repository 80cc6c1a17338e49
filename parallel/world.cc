#include "parallel/world.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>

#include "kernels/error.h"
#include "parallel/thread_ranks.h"

namespace kvloom {
namespace {

class SingleSession final : public RankSession {
 public:
  Communicator& communicator() override { return *communicator_; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  [[noreturn]] void abort(const std::string& message, int exit_status) override {
    fmt::print(stderr, "{}\n", message);
    std::fflush(nullptr);
    std::_Exit(exit_status);
  }

 private:
  std::unique_ptr<Communicator> communicator_ = make_single_rank();
};

std::unique_ptr<RankSession> start(const LaunchEnvironment& environment, const WorldOptions& options) {
  if (environment.started_by_mpi) return start_mpi(options);
  if (environment.other_ranks.has_value() && environment.other_ranks->world_size > 1) {
    reject_input(
        "rank {} of {} was started without MPI, over which ranks on CPUs talk: start them by mpirun -n {}, or "
        "srun --mpi=pmix",
        environment.other_ranks->rank, environment.other_ranks->world_size, environment.other_ranks->world_size);
  }
  return std::make_unique<SingleSession>();
}

}  // namespace

LaunchEnvironment launch_environment(const std::function<const char*(const char*)>& lookup) {
  static constexpr std::array kMarks{"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"};
  LaunchEnvironment environment;
  environment.started_by_mpi =
      std::any_of(kMarks.begin(), kMarks.end(), [&](const char* name) { return lookup(name) != nullptr; });
  if (!environment.started_by_mpi) environment.other_ranks = rank_numbers(lookup);
  return environment;
}

World::World(const LaunchEnvironment& environment, const WorldOptions& options)
    : session_(start(environment, options)) {}

}  // namespace kvloom
