// The contract over NCCL. Started alone where there is a GPU, this program starts itself as ranks that are processes
// (`--ranks=N`, 2 without it) and share the GPUs there are; NCCL takes ranks that share one for ranks of several
// machines, which NCCL_HOSTID tells it. Started as a rank by some launcher it is that rank.
#include "parallel/nccl_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "parallel/rendezvous.h"
#include "tests/support/communicator_contract.h"
#include "tests/support/device_buffers.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {

using test::CommunicatorContract;

namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

std::optional<MeetingPlace> place() {
  return meeting_place([](const char* name) { return std::getenv(name); });
}

std::string unavailable() {
  const CudaPresence presence = cuda_presence();
  return presence.devices > 0 && place().has_value() ? "" : presence.reason;
}

// This process as a rank of the world.
struct World {
  World() : compute(place()->local_rank % cuda_presence().devices) {
    const MeetingPlace where = *place();
    const std::string id = meet(where, where.rank == 0 ? make_nccl_id() : "");
    communicator = make_nccl_communicator(id, where.rank, where.world_size, compute, {.limit = milliseconds(60000)});
  }

  CudaStream compute;
  std::unique_ptr<Communicator> communicator;
};

// Made by the first test that runs; `main` ends it.
std::unique_ptr<World>& world_kept() {
  static std::unique_ptr<World> world;
  return world;
}

World* world() {
  if (world_kept() == nullptr) world_kept() = std::make_unique<World>();
  return world_kept().get();
}

void with_host_buffers(const test::Body& body) {
  Communicator& ranks = *world()->communicator;
  body(ranks, test::common_seed(ranks));
  ranks.barrier();
}

void with_device_buffers(const test::Body& body) {
  Communicator& ranks = *world()->communicator;
  test::DeviceBuffers on_device(ranks, world()->compute);
  body(on_device, test::common_seed(ranks));
  ranks.barrier();
}

INSTANTIATE_TEST_SUITE_P(Nccl, CommunicatorContract,
                         ::testing::Values(test::Ranks{"host_buffers", with_host_buffers, unavailable()},
                                           test::Ranks{"device_buffers", with_device_buffers, unavailable()}),
                         test::name_of_ranks);

class NcclRanks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!unavailable().empty()) GTEST_SKIP() << unavailable();
  }

  // One more world of the same ranks.
  static std::unique_ptr<Communicator> another(const NcclOptions& options) {
    return make_nccl_communicator(*world()->communicator, world()->compute, options);
  }
};

TEST_F(NcclRanks, ACollectiveThatOneRankDoesNotEnterIsAbortedAndNamed) {
  std::string told;
  const auto short_lived =
      another({.limit = milliseconds(2000), .on_failure = [&](const std::string& reason) { told = reason; }});
  if (short_lived->rank() == 0) {
    std::vector<float> data(1000, 1);
    try {
      short_lived->all_reduce(std::span(data));
      FAIL() << "one rank alone has reduced";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr("all_reduce (sum) of 1000 f32 among ranks 0, 1"),
                                      AnyOf(HasSubstr("stuck for"), HasSubstr("did not come within"))));
    }
    EXPECT_THROW(short_lived->barrier(), Error);
    EXPECT_THAT(told, HasSubstr("all_reduce"));
  }
  world()->communicator->barrier();
}

TEST_F(NcclRanks, AReceiveThatNobodySendsNamesPeerAndTag) {
  const auto short_lived = another({.limit = milliseconds(1000)});
  if (short_lived->rank() == 0) {
    std::vector<float> data(10);
    try {
      short_lived->receive(std::span(data), 1, 17);
      FAIL() << "received what nobody sent";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr("irecv of 10 f32 from rank 1 to rank 0, tag 17"),
                                      HasSubstr("nothing was sent within 1.0 s")));
    }
  }
  world()->communicator->barrier();
}

TEST_F(NcclRanks, SendsInARingOfAnySizeDoNotWaitForPostedReceives) {
  Communicator& ranks = *world()->communicator;
  const int next = (ranks.rank() + 1) % ranks.size();
  const int previous = (ranks.rank() + ranks.size() - 1) % ranks.size();
  constexpr std::size_t kCount = 8U << 20;  // beyond what NCCL keeps on the way
  std::vector<float> given(kCount, static_cast<float>(ranks.rank())), taken(kCount);
  ranks.send(std::span(given), next, 1);
  ranks.receive(std::span(taken), previous, 1);
  EXPECT_EQ(taken, std::vector<float>(kCount, static_cast<float>(previous)));
}

int ranks_asked_for(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]).rfind("--ranks=", 0) == 0) return std::atoi(argv[i] + 8);
  }
  return 2;
}

// 0 when every rank has passed.
int run_as_processes(int ranks, char** argv) {
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
      execv("/proc/self/exe", argv);
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

}  // namespace
}  // namespace kvloom

int main(int argc, char** argv) {
  std::vector<char*> arguments(argv, argv + argc + 1);
  const int ranks = kvloom::ranks_asked_for(argc, argv);
  ::testing::InitGoogleTest(&argc, argv);
  const bool starts_ranks = !kvloom::place().has_value() && !::testing::GTEST_FLAG(list_tests);
  if (starts_ranks && kvloom::cuda_presence().devices > 0) return kvloom::run_as_processes(ranks, arguments.data());
  const int result = RUN_ALL_TESTS();
  kvloom::world_kept().reset();
  return result;
}
