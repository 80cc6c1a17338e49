// Ranks that meet without MPI: by TCP and by a shared file, with late, missing, doubled and foreign ones.
#include "parallel/rendezvous.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <thread>

#include "kernels/error.h"
#include "parallel/socket.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

using Environment = std::map<std::string, std::string>;

std::optional<MeetingPlace> place_in(const Environment& environment) {
  return meeting_place([&](const char* name) -> const char* {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

TEST(MeetingPlace, IsReadFromTheUsualVariables) {
  EXPECT_FALSE(place_in({}).has_value());
  EXPECT_FALSE(place_in({{"WORLD_SIZE", "4"}}).has_value());
  const auto place = place_in({{"RANK", "3"},
                               {"WORLD_SIZE", "8"},
                               {"LOCAL_RANK", "1"},
                               {"MASTER_ADDR", "head"},
                               {"MASTER_PORT", "29500"},
                               {"KVLOOM_RENDEZVOUS_SECONDS", "7"}});
  ASSERT_TRUE(place.has_value());
  EXPECT_EQ(place->rank, 3);
  EXPECT_EQ(place->world_size, 8);
  EXPECT_EQ(place->local_rank, 1);
  EXPECT_EQ(place->address, "head");
  EXPECT_EQ(place->port, 29500);
  EXPECT_EQ(place->limit, std::chrono::seconds(7));
  EXPECT_EQ(place_in({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"KVLOOM_RENDEZVOUS_FILE", "/x/meet"}})->file, "/x/meet");
}

TEST(MeetingPlace, IsReadFromSlurmsVariablesInAStep) {
  Environment slurm{{"SLURM_PROCID", "5"},       {"SLURM_NTASKS", "8"},  {"SLURM_LOCALID", "1"},
                    {"SLURM_JOB_ID", "31234"},   {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NODELIST", "gpu[07-08]"},
                    {"SLURM_JOB_NODELIST", "a1"}};
  const auto place = place_in(slurm);
  ASSERT_TRUE(place.has_value());
  EXPECT_EQ(place->rank, 5);
  EXPECT_EQ(place->world_size, 8);
  EXPECT_EQ(place->local_rank, 1);
  EXPECT_EQ(place->address, "gpu07");
  EXPECT_EQ(place->port, 15000 + 31234 % 15000);
  slurm["MASTER_PORT"] = "4000";
  EXPECT_EQ(place_in(slurm)->port, 4000);
  slurm.erase("SLURM_STEP_ID");  // the batch script itself
  EXPECT_FALSE(place_in(slurm).has_value());
}

TEST(MeetingPlace, TheFirstMachineOfSlurmsNotation) {
  EXPECT_EQ(first_machine("gpu[03-07,12],cpu1"), "gpu03");
  EXPECT_EQ(first_machine("gpu[3,5]"), "gpu3");
  EXPECT_EQ(first_machine("rack[1-2]-node,other"), "rack1-node");
  EXPECT_EQ(first_machine("alone"), "alone");
  EXPECT_EQ(first_machine("one,two[1-2]"), "one");
  EXPECT_THROW(first_machine("gpu[03"), InputError);
}

TEST(MeetingPlace, WhatMakesNoSenseIsNamed) {
  const Environment good{{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}};
  EXPECT_TRUE(place_in(good).has_value());
  const std::vector<std::pair<std::string, std::string>> wrong{{"RANK", "2"},
                                                               {"RANK", "-1"},
                                                               {"RANK", "one"},
                                                               {"RANK", ""},
                                                               {"WORLD_SIZE", "0"},
                                                               {"WORLD_SIZE", ""},
                                                               {"MASTER_PORT", "0"},
                                                               {"MASTER_PORT", "65536"},
                                                               {"LOCAL_RANK", "1.5"},
                                                               {"RANK", "1 "},
                                                               {"WORLD_SIZE", "9999999999"}};
  for (const auto& [name, value] : wrong) {
    Environment bad = good;
    bad[name] = value;
    try {
      place_in(bad);
      ADD_FAILURE() << name << "=" << value << " was taken";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr(name));
    }
  }
  for (const std::string name : {"WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}) {
    Environment bad = good;
    bad.erase(name);
    try {
      place_in(bad);
      ADD_FAILURE() << "went without " << name;
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr(name));
    }
  }
}

enum class Way { kSocket, kFile };

class Rendezvous : public ::testing::TestWithParam<Way> {
 protected:
  Rendezvous() {
    place_.limit = milliseconds(20000);
    if (GetParam() == Way::kFile) {
      place_.file = (folder_.path() / "meet").string();
    } else {
      place_.address = "127.0.0.1";
      place_.port = Socket::listen(0).port();
    }
  }

  MeetingPlace place(int rank, int world_size) const {
    MeetingPlace place = place_;
    place.rank = rank;
    place.world_size = world_size;
    return place;
  }

  struct Outcome {
    std::string bytes;
    std::string error;
  };

  // Each place in a thread; starts are drawn apart by up to `spread`.
  std::vector<Outcome> outcomes(const std::vector<MeetingPlace>& places, const std::string& bytes, int spread = 0) {
    test::Random random;
    std::vector<Outcome> results(places.size());
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < places.size(); ++i) {
      const milliseconds delay(random.integer(0, spread));
      threads.emplace_back([&, i, delay] {
        std::this_thread::sleep_for(delay);
        try {
          results[i].bytes = meet(places[i], places[i].rank == 0 ? bytes : "not rank 0's");
        } catch (const Error& error) {
          results[i].error = error.what();
        }
      });
    }
    threads.clear();
    return results;
  }

  TemporaryFolder folder_;
  MeetingPlace place_;
};

TEST_P(Rendezvous, EveryRankHasRankZerosBytesWhateverTheOrderOfArrival) {
  const std::string bytes("an id\0with \n zeros", 18);
  for (const int ranks : {1, 2, 5}) {
    std::vector<MeetingPlace> places;
    for (int rank = 0; rank < ranks; ++rank) places.push_back(place(rank, ranks));
    for (const Outcome& outcome : outcomes(places, bytes, 150)) {
      EXPECT_EQ(outcome.error, "");
      EXPECT_EQ(outcome.bytes, bytes);
    }
  }
}

TEST_P(Rendezvous, NobodyLeavesBeforeTheLastHasCome) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  std::vector<Clock::time_point> ends(3);
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < 3; ++rank) {
    threads.emplace_back([&, rank] {
      if (rank == 2) std::this_thread::sleep_for(milliseconds(300));
      meet(place(rank, 3), "x");
      ends[static_cast<std::size_t>(rank)] = Clock::now();
    });
  }
  threads.clear();
  for (const Clock::time_point end : ends) EXPECT_GE(end - begin, milliseconds(300));
}

TEST_P(Rendezvous, ProcessesMeetToo) {
  std::vector<pid_t> children;
  for (int rank = 1; rank < 3; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      int status = 1;
      try {
        status = meet(place(rank, 3), "") == "from the parent" ? 0 : 2;
      } catch (const std::exception&) {
      }
      _exit(status);
    }
    children.push_back(child);
  }
  EXPECT_EQ(meet(place(0, 3), "from the parent"), "from the parent");
  for (const pid_t child : children) {
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
}

TEST_P(Rendezvous, AMissingRankIsNamedToAllThatCame) {
  place_.limit = milliseconds(400);
  const auto results = outcomes({place(0, 4), place(1, 4), place(3, 4)}, "x");
  for (const Outcome& outcome : results) {
    EXPECT_THAT(outcome.error, AllOf(HasSubstr("rank 2 of 4 did not come within 0.4 s"), HasSubstr("rendezvous")));
  }
}

TEST_P(Rendezvous, AMissingRankZeroIsNamed) {
  place_.limit = milliseconds(200);
  EXPECT_THAT(outcomes({place(1, 2)}, "x")[0].error, HasSubstr("rank 1 does not reach rank 0"));
}

TEST_P(Rendezvous, AWorldOfAnotherSizeIsRefusedOnAllRanks) {
  place_.limit = milliseconds(500);
  const auto results = outcomes({place(0, 3), place(1, 3), place(2, 4)}, "x");
  for (const Outcome& outcome : results) {
    EXPECT_THAT(outcome.error, HasSubstr("rank 2 says that there are 4 ranks, rank 0 says 3"));
  }
}

TEST_P(Rendezvous, TwoRanksOfOneNumberAreRefused) {
  place_.limit = milliseconds(800);
  const auto results = outcomes({place(0, 3), place(1, 3), place(1, 3)}, "x");
  int told = 0;
  for (const Outcome& outcome : results) {
    EXPECT_NE(outcome.error, "");
    if (outcome.error.find("two ranks say that they are rank 1") != std::string::npos) ++told;
  }
  EXPECT_GE(told, 1);
}

INSTANTIATE_TEST_SUITE_P(Ways, Rendezvous, ::testing::Values(Way::kSocket, Way::kFile),
                         [](const auto& way) { return way.param == Way::kSocket ? "Socket" : "File"; });

TEST(RendezvousAtASocket, StrangersArePassedOver) {
  MeetingPlace zero{.rank = 0, .world_size = 2, .address = "127.0.0.1", .limit = milliseconds(20000)};
  zero.port = Socket::listen(0).port();
  MeetingPlace one = zero;
  one.rank = 1;
  std::jthread rank_zero([&] { EXPECT_EQ(meet(zero, "x"), "x"); });
  {
    const Socket stranger = Socket::connect("127.0.0.1", zero.port, after(milliseconds(5000)));
    stranger.write("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", after(milliseconds(1000)));
    const Socket leaver = Socket::connect("127.0.0.1", zero.port, after(milliseconds(5000)));
  }
  EXPECT_EQ(meet(one, ""), "x");
}

TEST(RendezvousInAFile, WhatAnEarlierRunLeftTakesNoPart) {
  const TemporaryFolder folder;
  MeetingPlace zero{
      .rank = 0, .world_size = 2, .file = (folder.path() / "meet").string(), .limit = milliseconds(20000)};
  MeetingPlace one = zero;
  one.rank = 1;
  std::ofstream(zero.file) << "kvloom met 4567 0123\nold bytes";
  std::ofstream(zero.file + ".rank-1") << "kvloom 0123 2 4567\n";
  std::jthread rank_zero([&] { EXPECT_EQ(meet(zero, "new bytes"), "new bytes"); });
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_EQ(meet(one, ""), "new bytes");
  rank_zero.join();
  EXPECT_TRUE(std::filesystem::is_empty(folder.path())) << "files were left behind";
}

}  // namespace
}  // namespace kvloom
