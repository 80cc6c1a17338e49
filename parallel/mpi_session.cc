#include <mpi.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "core/checksum.h"
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

// What every rank finds wrong is said once: by the lowest rank. A rank on its way down tells those above it, and stays
// silent when one below it has the same to say. Nothing here waits for a rank that is alive, nor throws.
class FailureNotices {
 public:
  explicit FailureNotices(MPI_Comm communicator) : communicator_(communicator) {
    MPI_Comm_rank(communicator_, &rank_);
    MPI_Comm_size(communicator_, &size_);
  }

  // Waits for lower ranks' notices for kGrace, and that long only when there are lower ranks.
  bool said_by_a_lower_rank(const std::string& message) {
    const std::uint64_t own = checksum(std::as_bytes(std::span(message)));
    tell_higher_ranks(own);
    const auto end = std::chrono::steady_clock::now() + kGrace;
    while (rank_ > 0 && std::chrono::steady_clock::now() < end) {
      std::uint64_t said = 0;
      if (!take_notice(said)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      if (said == own) return true;
    }
    return false;
  }

 private:
  static constexpr std::chrono::milliseconds kGrace{500};

  void tell_higher_ranks(std::uint64_t notice) {
    told_ = notice;
    for (int rank = rank_ + 1; rank < size_; ++rank) {
      MPI_Request request = MPI_REQUEST_NULL;
      if (MPI_Isend(&told_, 1, MPI_UINT64_T, rank, 0, communicator_, &request) == MPI_SUCCESS) {
        MPI_Request_free(&request);
      }
    }
  }

  bool take_notice(std::uint64_t& notice) {
    int is_there = 0;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, 0, communicator_, &is_there, &status) != MPI_SUCCESS || is_there == 0) return false;
    return MPI_Recv(&notice, 1, MPI_UINT64_T, status.MPI_SOURCE, 0, communicator_, &status) == MPI_SUCCESS;
  }

  MPI_Comm communicator_;
  int rank_ = 0;
  int size_ = 1;
  std::uint64_t told_ = 0;  // until the process ends
};

class MpiSession final : public RankSession {
 public:
  explicit MpiSession(const WorldOptions& options)
      : communicator_(duplicate_of_world(), options.largest_count, unfinished_), notices_(duplicate_of_world()) {
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
    // The rank that speaks takes this one down; should it die before, this one speaks after all.
    if (notices_.said_by_a_lower_rank(message)) std::this_thread::sleep_for(kPatience);
    fmt::print(stderr, "rank {}: {}\n", communicator_.rank(), message);
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, exit_status);
    std::_Exit(exit_status);
  }

 private:
  static constexpr std::chrono::seconds kPatience{5};

  static MPI_Comm duplicate_of_world() {
    MPI_Comm world = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup", 0);
    check_mpi(MPI_Comm_set_errhandler(world, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", 0);
    return world;
  }

  std::shared_ptr<UnfinishedBuffers> unfinished_ = std::make_shared<UnfinishedBuffers>();  // outlives MPI
  MpiRuntime runtime_;
  MpiCommunicator communicator_;
  FailureNotices notices_;
  int local_rank_ = 0;
  int local_size_ = 1;
};

}  // namespace

std::unique_ptr<RankSession> start_mpi(const WorldOptions& options) { return std::make_unique<MpiSession>(options); }

}  // namespace kvloom
