// The contract for thread ranks of 1 to 5, and for the world of MPI when mpirun starts this program; and what is
// peculiar to threads, worlds and meshes.
#include "parallel/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <map>
#include <stdexcept>
#include <thread>

#include "parallel/mesh.h"
#include "parallel/thread_ranks.h"
#include "parallel/world.h"
#include "tests/support/communicator_contract.h"
#include "tests/support/random.h"

namespace kvloom {

using test::CommunicatorContract;

namespace {

using ::testing::HasSubstr;

LaunchEnvironment environment() {
  return launch_environment([](const char* name) { return std::getenv(name); });
}

// Ends MPI after the last test.
World& mpi_world() {
  static World world(environment(), {.largest_count = 7});  // so that small buffers also go in pieces
  return world;
}

void run_on_mpi_ranks(const test::Body& body) {
  Communicator& world = mpi_world().communicator();
  body(world, test::common_seed(world));
  world.barrier();
}

test::Ranks thread_ranks(int ranks) {
  return {"threads_" + std::to_string(ranks), [ranks](const test::Body& body) {
            const std::uint64_t seed = test::Random().seed() >> 16;
            SCOPED_TRACE(seed);
            run_thread_ranks(ranks, [&](Communicator& communicator) { body(communicator, seed); });
          }};
}

std::vector<test::Ranks> ranks_present() {
  if (environment().started_by_mpi) return {{"mpi", run_on_mpi_ranks}};
  return {thread_ranks(1), thread_ranks(2), thread_ranks(3), thread_ranks(4), thread_ranks(5)};
}

INSTANTIATE_TEST_SUITE_P(Ranks, CommunicatorContract, ::testing::ValuesIn(ranks_present()), test::name_of_ranks);

std::string failure_of(int ranks, const std::function<void(Communicator&)>& body) {
  try {
    run_thread_ranks(ranks, body);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

TEST(ThreadRanks, AnExceptionInOneRankWakesAllOthers) {
  for (int culprit = 0; culprit < 4; ++culprit) {
    std::atomic<int> woken = 0;
    const std::string message = failure_of(4, [&](Communicator& communicator) {
      const auto half = communicator.split(communicator.rank() / 2, 0);
      if (communicator.rank() == culprit) fail("the culprit");
      try {
        std::vector<float> data(1);
        if (communicator.rank() % 2 == 0) communicator.barrier();
        if (half->size() == 2) half->receive(std::span(data), 1 - half->rank(), 0);
      } catch (const Error& e) {
        EXPECT_THAT(e.what(), HasSubstr("the culprit"));
        ++woken;
        throw;
      }
    });
    EXPECT_EQ(message, "the culprit");
    EXPECT_EQ(woken, 3);
  }
}

TEST(ThreadRanks, WaitingForARankThatEndedFails) {
  EXPECT_THAT(failure_of(3,
                         [](Communicator& communicator) {
                           if (communicator.rank() != 1) communicator.barrier();
                         }),
              HasSubstr("rank 1 has ended"));
  EXPECT_THAT(failure_of(2,
                         [](Communicator& communicator) {
                           std::vector<float> data(1);
                           if (communicator.rank() == 0) communicator.receive(std::span(data), 1, 9);
                         }),
              HasSubstr("from rank 1, tag 9"));
}

TEST(ThreadRanks, AReceiveThatCannotSucceedIsDoneAndThrows) {
  run_thread_ranks(2, [](Communicator& communicator) {
    if (communicator.rank() == 1) return;
    std::vector<float> data(1);
    Transfer receive = communicator.irecv(std::span(data), 1, 0);
    while (!receive.done()) std::this_thread::yield();
    EXPECT_THROW(receive.wait(), Error);
  });
}

TEST(ThreadRanks, RanksInDifferentCollectivesFail) {
  EXPECT_THAT(failure_of(2,
                         [](Communicator& communicator) {
                           std::vector<float> data(communicator.rank() == 0 ? 2 : 3);
                           communicator.all_reduce(std::span(data));
                         }),
              HasSubstr("all_reduce of 2 f32"));
}

// Its buffer goes with it; under a sanitizer another rank that still touched it would show.
TEST(ThreadRanks, ACollectiveThatOneRankGivesUpFailsForTheOthers) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    run_thread_ranks(3, [](Communicator& communicator) {
      std::vector<float> kept(100000, 1.0F);
      Transfer transfer;
      if (communicator.rank() == 1) {
        std::vector<float> gone(kept);
        transfer = communicator.iall_reduce(std::span(gone));
        transfer = {};
      } else {
        transfer = communicator.iall_reduce(std::span(kept));
        if (communicator.rank() == 2) communicator.barrier();
        try {
          transfer.wait();  // or it was over before rank 1 gave it up
          EXPECT_EQ(kept.front(), 3.0F);
        } catch (const Error& error) {
          EXPECT_THAT(error.what(), HasSubstr("all_reduce on rank"));
        }
      }
      if (communicator.rank() != 2) communicator.barrier();
    });
  }
}

TEST(ThreadRanks, ARankThatComesLateDoesNotHoldUpWhatIsStarted) {
  run_thread_ranks(2, [](Communicator& communicator) {
    std::vector<float> data(100000, 1.0F);
    Transfer sum = communicator.iall_reduce(std::span(data));
    // Rank 0 does the work alone while rank 1 waits for its word that it is done.
    std::vector<std::int32_t> word(1);
    if (communicator.rank() == 0) {
      sum.wait();
      communicator.send(std::span(word), 1, 0);
    } else {
      communicator.receive(std::span(word), 0, 0);
      EXPECT_EQ(data.back(), 2.0F);
      sum.wait();
    }
    EXPECT_EQ(data.front(), 2.0F);
  });
}

TEST(ThreadRanks, SumsGoInOrderOfRank) {
  run_thread_ranks(4, [](Communicator& communicator) {
    const std::array<float, 4> brought{1e8F, 1.0F, -1e8F, 1.0F};
    std::vector<float> data(100, brought[static_cast<std::size_t>(communicator.rank())]);
    communicator.all_reduce(std::span(data));
    const float expected = ((brought[0] + brought[1]) + brought[2]) + brought[3];
    for (const float value : data) EXPECT_EQ(value, expected);
  });
}

TEST(WorldStart, StartsMpiOnlyUnderALauncher) {
  EXPECT_FALSE(launch_environment([](const char*) -> const char* { return nullptr; }).started_by_mpi);
  for (const std::string mark : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"}) {
    EXPECT_TRUE(launch_environment([&](const char* name) { return mark == name ? "1" : nullptr; }).started_by_mpi);
  }
  World alone(LaunchEnvironment{});
  EXPECT_EQ(alone.communicator().size(), 1);
  EXPECT_EQ(alone.local_size(), 1);
}

TEST(WorldStart, RefusesRanksThatHaveNothingToTalkOver) {
  // Whether or not they say where to meet.
  std::map<std::string, std::string> variables = {
      {"RANK", "1"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "localhost"}, {"MASTER_PORT", "2000"}};
  for (const char* missing : {"", "MASTER_PORT", "MASTER_ADDR"}) {
    variables.erase(missing);
    try {
      const LaunchEnvironment started = launch_environment([&](const char* name) {
        const auto found = variables.find(name);
        return found == variables.end() ? nullptr : found->second.c_str();
      });
      EXPECT_FALSE(started.started_by_mpi);
      World{started};
      FAIL() << "accepted";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr("rank 1 of 4 was started without MPI"));
    }
  }
}

TEST(WorldStart, KnowsTheRanksOfThisMachine) {
  if (!environment().started_by_mpi) GTEST_SKIP() << "needs mpirun";
  EXPECT_EQ(mpi_world().local_size(), mpi_world().communicator().size());
  EXPECT_EQ(mpi_world().local_rank(), mpi_world().communicator().rank());
}

// MPI goes on writing into what a failed rank had widened: by then it must not be anyone else's.
TEST(MpiRanks, AReductionLeftByAnExceptionKeepsItsBuffers) {
  if (!environment().started_by_mpi) GTEST_SKIP() << "needs mpirun";
  Communicator& world = mpi_world().communicator();
  constexpr std::size_t kCount = 1000;
  constexpr int kTag = 3;
  std::vector<BFloat16> data(kCount, BFloat16(1.0F));
  std::vector<std::int32_t> word(1);
  if (world.rank() != 0) {
    world.receive(std::span(word), 0, kTag);
    world.iall_reduce(std::span(data)).wait();
    world.barrier();
    return;
  }
  try {
    const Transfer left = world.iall_reduce(std::span(data));
    throw std::runtime_error("this rank fails");
  } catch (const std::runtime_error&) {
  }
  // Memory of the same size, which the allocator would hand out again.
  std::vector<std::vector<float>> others(8, std::vector<float>(kCount, -7.0F));
  for (int rank = 1; rank < world.size(); ++rank) world.send(std::span(word), rank, kTag);
  world.barrier();
  for (const auto& other : others) EXPECT_THAT(other, ::testing::Each(-7.0F));
}

TEST(MeshPlaces, TensorRunsFastestAndEveryRankHasItsPlace) {
  test::Random random;
  for (int repeat = 0; repeat < 50; ++repeat) {
    const int data = static_cast<int>(random.integer(1, 4));
    const int pipeline = static_cast<int>(random.integer(1, 4));
    const int tensor = static_cast<int>(random.integer(1, 4));
    const Mesh mesh = Mesh::fit(random.flip() ? 0 : data, pipeline, tensor, data * pipeline * tensor);
    EXPECT_EQ(mesh.data, data);
    int rank = 0;
    for (int d = 0; d < data; ++d) {
      for (int p = 0; p < pipeline; ++p) {
        for (int t = 0; t < tensor; ++t, ++rank) {
          EXPECT_EQ(mesh.rank_of({d, p, t}), rank);
          EXPECT_EQ(mesh.place_of(rank), (MeshPlace{d, p, t}));
        }
      }
    }
  }
}

TEST(MeshPlaces, AMeshThatDoesNotFitIsRefused) {
  EXPECT_THROW(Mesh::fit(0, 2, 1, 3), InputError);
  EXPECT_THROW(Mesh::fit(2, 1, 1, 4), InputError);
  EXPECT_THROW(Mesh::fit(4, 2, 1, 4), InputError);
  EXPECT_THROW(Mesh::fit(1, 0, 1, 1), InputError);
  EXPECT_THROW(Mesh::fit(1, 1, 4294967295, 2), InputError);
}

}  // namespace
}  // namespace kvloom
