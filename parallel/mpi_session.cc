#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "kernels/error.h"
#include "parallel/mpi_communicator.h"
#include "parallel/world.h"

namespace kvloom {
namespace {

// MPI between its start and its end.
class MpiRuntime {
 public:
  MpiRuntime() {
    int provided = MPI_THREAD_SINGLE;
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread", 0);
    check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", 0);
    if (provided < MPI_THREAD_SERIALIZED) {
      MPI_Finalize();
      fail("MPI gives thread level {}; kvloom needs MPI_THREAD_SERIALIZED ({})", provided, MPI_THREAD_SERIALIZED);
    }
  }
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  // MPI_Finalize waits for every rank, and the others wait for this one.
  ~MpiRuntime() {
    if (std::uncaught_exceptions() > 0) MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
    MPI_Finalize();
  }
};

class MpiSession final : public RankSession {
 public:
  explicit MpiSession(const WorldOptions& options) : communicator_(duplicate_of_world(), options.largest_count) {
    MPI_Comm machine = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, communicator_.rank(), MPI_INFO_NULL, &machine),
              "MPI_Comm_split_type", communicator_.rank());
    MPI_Comm_rank(machine, &local_rank_);
    MPI_Comm_size(machine, &local_size_);
    MPI_Comm_free(&machine);
  }

  Communicator& communicator() override { return communicator_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }

  [[noreturn]] void abort(const std::string& message, int exit_status) override {
    fmt::print(stderr, "rank {}: {}\n", communicator_.rank(), message);
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, exit_status);
    std::_Exit(exit_status);
  }

 private:
  static MPI_Comm duplicate_of_world() {
    MPI_Comm world = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup", 0);
    check_mpi(MPI_Comm_set_errhandler(world, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", 0);
    return world;
  }

  MpiRuntime runtime_;
  MpiCommunicator communicator_;
  int local_rank_ = 0;
  int local_size_ = 1;
};

}  // namespace

std::unique_ptr<RankSession> start_mpi(const WorldOptions& options) { return std::make_unique<MpiSession>(options); }

}  // namespace kvloom
