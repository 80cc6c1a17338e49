#include "parallel/device_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/allocator.h"
#include "kernels/error.h"
#include "parallel/thread_ranks.h"

namespace kvloom {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr GpuSharing kNo = GpuSharing::kNo;
constexpr GpuSharing kYes = GpuSharing::kYes;

std::string refusal(const std::string& text, const LocalRank& place, int gpus) {
  try {
    device_of_rank(text, place, gpus, kNo);
  } catch (const InputError& error) {
    return error.what();
  }
  return "taken";
}

TEST(DeviceOfRank, EachRankOfAMachineTakesTheGpuOfItsNumber) {
  for (int rank = 0; rank < 4; ++rank) {
    const Device device = device_of_rank("cuda", {.rank = rank, .size = 4, .world_size = 8}, 8, kNo);
    EXPECT_EQ(device, (Device{Device::Kind::kCuda, rank}));
  }
}

TEST(DeviceOfRank, OneRankTakesWhatItNames) {
  EXPECT_EQ(device_of_rank("cuda:3", {}, 4, kNo).index, 3);
  EXPECT_EQ(device_of_rank("cuda", {}, 4, kNo).index, 0);
}

TEST(DeviceOfRank, TheCpuIsEveryRanks) {
  EXPECT_EQ(device_of_rank("cpu", {.rank = 1, .size = 2, .world_size = 2}, 0, kNo), Device{});
}

TEST(DeviceOfRank, ANumberedGpuForSeveralRanksIsRefused) {
  EXPECT_THAT(refusal("cuda:1", {.rank = 0, .size = 1, .world_size = 2}, 2),
              AllOf(HasSubstr("cuda:1"), HasSubstr("2 ranks")));
}

TEST(DeviceOfRank, MoreRanksThanGpusAreRefusedInTheSameWordsOnEach) {
  const std::string first = refusal("cuda", {.rank = 0, .size = 4, .world_size = 4}, 2);
  EXPECT_THAT(first, AllOf(HasSubstr("4 ranks"), HasSubstr("2 GPUs")));
  for (int rank = 1; rank < 4; ++rank) {
    EXPECT_EQ(refusal("cuda", {.rank = rank, .size = 4, .world_size = 4}, 2), first);
  }
}

TEST(DeviceOfRank, RanksThatMayShareSpreadOverTheGpus) {
  int taken[2] = {0, 0};
  for (int rank = 0; rank < 4; ++rank) {
    ++taken[device_of_rank("cuda", {.rank = rank, .size = 4, .world_size = 4}, 2, kYes).index];
  }
  EXPECT_EQ(taken[0], 2);
  EXPECT_EQ(taken[1], 2);
}

// Whoever makes the allocator says why there is none.
TEST(DeviceOfRank, WithoutAGpuEveryRankAsksForTheFirst) {
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(device_of_rank("cuda", {.rank = rank, .size = 2, .world_size = 2}, 0, kNo).index, 0);
  }
}

TEST(ConnectByNccl, RefusesTensorsOfTheCpu) {
  CachingCpuAllocator host;
  const auto world = make_single_rank();
  EXPECT_THROW(connect_by_nccl({})(*world, host), Error);
}

}  // namespace
}  // namespace kvloom
