// One contract for every communicator. A test program says how ranks are brought up (Ranks) and instantiates it:
//   INSTANTIATE_TEST_SUITE_P(Threads, CommunicatorContract, ::testing::ValuesIn(...), name_of_ranks);
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator.h"
#include "tests/support/random.h"

namespace kvloom::test {

// Every rank draws the same numbers from a seed, so that each knows what the others bring.
template <typename T>
std::vector<T> values_of(std::uint64_t seed, int rank, std::size_t count) {
  Random random(seed + 1000 * static_cast<std::uint64_t>(rank));
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(static_cast<float>(random.integer(0, 20)));
  return values;
}

template <typename T>
std::vector<double> as_doubles(std::span<const T> values) {
  std::vector<double> wide;
  for (const T value : values) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      wide.push_back(static_cast<float>(value));
    } else {
      wide.push_back(static_cast<double>(value));
    }
  }
  return wide;
}

template <typename T>
std::vector<double> as_doubles(const std::vector<T>& values) {
  return as_doubles(std::span<const T>(values));
}

template <typename T>
std::vector<double> reduced(std::uint64_t seed, int ranks, std::size_t count, Reduction reduction) {
  std::vector<double> result(count, 0);
  for (int r = 0; r < ranks; ++r) {
    const std::vector<double> values = as_doubles(values_of<T>(seed, r, count));
    for (std::size_t i = 0; i < count; ++i) {
      result[i] = reduction == Reduction::kSum ? result[i] + values[i] : std::max(result[i], values[i]);
    }
  }
  return result;
}

// GoogleTest's assertions work from any thread here.
using Body = std::function<void(Communicator&, std::uint64_t seed)>;

// How one implementation brings up its ranks.
struct Ranks {
  std::string name;
  // Runs the body on every rank of this process, with a seed that all ranks have.
  std::function<void(const Body&)> run;
  std::string unavailable;  // why it cannot run here; the tests show as skipped
};

inline void PrintTo(const Ranks& ranks, std::ostream* stream) { *stream << ranks.name; }

class CommunicatorContract : public ::testing::TestWithParam<Ranks> {
 protected:
  void SetUp() override {
    if (!GetParam().unavailable.empty()) GTEST_SKIP() << GetParam().unavailable;
  }
  void on_every_rank(const Body& body) { GetParam().run(body); }

  template <typename Check>
  void for_every_type(const Check& check) {
    on_every_rank([&](Communicator& communicator, std::uint64_t seed) {
      check.template operator()<float>(communicator, seed);
      check.template operator()<BFloat16>(communicator, seed);
      check.template operator()<double>(communicator, seed);
      check.template operator()<std::int32_t>(communicator, seed);
      check.template operator()<std::int64_t>(communicator, seed);
      check.template operator()<std::uint8_t>(communicator, seed);
    });
  }
};

inline constexpr std::array<std::size_t, 4> kCounts{0, 1, 5, 2051};

TEST_P(CommunicatorContract, AllReduceGivesEveryRankTheReduction) {
  for_every_type([]<typename T>(Communicator& communicator, std::uint64_t seed) {
    for (const std::size_t count : kCounts) {
      for (const Reduction reduction : {Reduction::kSum, Reduction::kMax}) {
        std::vector<T> data = values_of<T>(seed, communicator.rank(), count);
        communicator.all_reduce(std::span(data), reduction);
        EXPECT_EQ(as_doubles(data), reduced<T>(seed, communicator.size(), count, reduction));
      }
    }
  });
}

TEST_P(CommunicatorContract, ReduceScatterGivesEachRankItsPart) {
  for_every_type([]<typename T>(Communicator& communicator, std::uint64_t seed) {
    for (const std::size_t count : kCounts) {
      const std::size_t all = count * static_cast<std::size_t>(communicator.size());
      const std::vector<T> input = values_of<T>(seed, communicator.rank(), all);
      std::vector<T> output(count);
      communicator.reduce_scatter(input, std::span(output));
      const std::vector<double> sums = reduced<T>(seed, communicator.size(), all, Reduction::kSum);
      const auto part = sums.begin() + static_cast<std::ptrdiff_t>(count) * communicator.rank();
      EXPECT_EQ(as_doubles(output), std::vector<double>(part, part + static_cast<std::ptrdiff_t>(count)));
    }
  });
}

TEST_P(CommunicatorContract, WhatIsStartedGivesWhatIsWaitedForAtOnce) {
  for_every_type([]<typename T>(Communicator& communicator, std::uint64_t seed) {
    const auto ranks = static_cast<std::size_t>(communicator.size());
    const int root = communicator.size() - 1;
    for (const std::size_t count : kCounts) {
      for (const Reduction reduction : {Reduction::kSum, Reduction::kMax}) {
        const std::vector<T> given = values_of<T>(seed, communicator.rank(), count);
        const std::vector<T> all = values_of<T>(seed + 1, communicator.rank(), count * ranks);
        std::vector<T> everywhere = given, at_root = given, part(count);
        Transfer first = communicator.iall_reduce(std::span(everywhere), reduction);
        Transfer second = communicator.ireduce(std::span(at_root), root, reduction);
        Transfer third = communicator.ireduce_scatter(all, std::span(part), reduction);
        // In another order on every second rank.
        if (communicator.rank() % 2 == 0) first.wait();
        third.wait();
        second.wait();
        first.wait();
        const std::vector<double> expected = reduced<T>(seed, communicator.size(), count, reduction);
        EXPECT_EQ(as_doubles(everywhere), expected);
        EXPECT_EQ(as_doubles(at_root), communicator.rank() == root ? expected : as_doubles(given));
        const std::vector<double> whole = reduced<T>(seed + 1, communicator.size(), count * ranks, reduction);
        const auto own = whole.begin() + static_cast<std::ptrdiff_t>(count) * communicator.rank();
        EXPECT_EQ(as_doubles(part), std::vector<double>(own, own + static_cast<std::ptrdiff_t>(count)));
      }
    }
  });
}

TEST_P(CommunicatorContract, WhatIsStartedLetsRanksTalkBeforeItEnds) {
  on_every_rank([](Communicator& communicator, std::uint64_t seed) {
    std::vector<float> sums = values_of<float>(seed, communicator.rank(), 2051);
    Transfer sum = communicator.iall_reduce(std::span(sums));
    const auto twin = communicator.split(0, communicator.rank());
    const int next = (communicator.rank() + 1) % communicator.size();
    const int previous = (communicator.rank() + communicator.size() - 1) % communicator.size();
    std::vector<float> given{static_cast<float>(communicator.rank())}, taken(1), most = given;
    Transfer send = communicator.isend(std::span(given), next, 2);
    communicator.receive(std::span(taken), previous, 2);
    send.wait();
    twin->all_reduce(std::span(most), Reduction::kMax);
    EXPECT_EQ(taken[0], static_cast<float>(previous));
    EXPECT_EQ(most[0], static_cast<float>(communicator.size() - 1));
    while (!sum.done()) std::this_thread::yield();
    sum.wait();
    EXPECT_EQ(as_doubles(sums), reduced<float>(seed, communicator.size(), 2051, Reduction::kSum));
  });
}

TEST_P(CommunicatorContract, AllGatherPutsRanksInOrder) {
  for_every_type([]<typename T>(Communicator& communicator, std::uint64_t seed) {
    for (const std::size_t count : kCounts) {
      std::vector<T> output(count * static_cast<std::size_t>(communicator.size()));
      communicator.all_gather(values_of<T>(seed, communicator.rank(), count), std::span(output));
      for (int r = 0; r < communicator.size(); ++r) {
        const auto part = std::span<const T>(output).subspan(static_cast<std::size_t>(r) * count, count);
        EXPECT_EQ(as_doubles(part), as_doubles(values_of<T>(seed, r, count)));
      }
    }
  });
}

TEST_P(CommunicatorContract, BroadcastGivesEveryRankTheRootsData) {
  for_every_type([]<typename T>(Communicator& communicator, std::uint64_t seed) {
    for (int root = 0; root < communicator.size(); ++root) {
      std::vector<T> data = values_of<T>(seed, communicator.rank(), 33);
      communicator.broadcast(std::span(data), root);
      EXPECT_EQ(as_doubles(data), as_doubles(values_of<T>(seed, root, 33)));
    }
  });
}

TEST_P(CommunicatorContract, AllToAllTransposesParts) {
  for_every_type([]<typename T>(Communicator& communicator, std::uint64_t seed) {
    for (const std::size_t count : kCounts) {
      const auto ranks = static_cast<std::size_t>(communicator.size());
      const auto own = static_cast<std::size_t>(communicator.rank());
      std::vector<T> output(count * ranks);
      communicator.all_to_all(values_of<T>(seed, communicator.rank(), count * ranks), std::span(output));
      for (std::size_t r = 0; r < ranks; ++r) {
        const std::vector<T> sent = values_of<T>(seed, static_cast<int>(r), count * ranks);
        EXPECT_EQ(as_doubles(std::span<const T>(output).subspan(r * count, count)),
                  as_doubles(std::span<const T>(sent).subspan(own * count, count)));
      }
    }
  });
}

TEST_P(CommunicatorContract, MessagesOfATagKeepTheirOrderAndTagsDoNot) {
  on_every_rank([](Communicator& communicator, std::uint64_t seed) {
    const int next = (communicator.rank() + 1) % communicator.size();
    const int previous = (communicator.rank() + communicator.size() - 1) % communicator.size();
    const auto message = [&](int rank, int number) {
      return values_of<float>(seed + static_cast<std::uint64_t>(number), rank, 10 + static_cast<std::size_t>(number));
    };
    std::vector<std::vector<float>> sent;
    for (int number = 0; number < 3; ++number) sent.push_back(message(communicator.rank(), number));
    std::vector<Transfer> transfers;
    transfers.push_back(communicator.isend(std::span(sent[0]), next, 4));
    transfers.push_back(communicator.isend(std::span(sent[1]), next, 4));
    transfers.push_back(communicator.isend(std::span(sent[2]), next, 3));

    std::vector<float> third(12), first(10), second(11);
    communicator.receive(std::span(third), previous, 3);
    Transfer take_first = communicator.irecv(std::span(first), previous, 4);
    Transfer take_second = communicator.irecv(std::span(second), previous, 4);
    take_second.wait();
    take_first.wait();
    wait_all(transfers);
    EXPECT_EQ(first, message(previous, 0));
    EXPECT_EQ(second, message(previous, 1));
    EXPECT_EQ(third, message(previous, 2));
  });
}

TEST_P(CommunicatorContract, SplitGroupsByColorAndOrdersByKey) {
  on_every_rank([](Communicator& communicator, std::uint64_t) {
    const int color = communicator.rank() % 2;
    const auto part = communicator.split(color, -communicator.rank());
    std::vector<std::int32_t> members(static_cast<std::size_t>(part->size()));
    part->all_gather(std::vector<std::int32_t>{communicator.rank()}, std::span(members));
    std::vector<std::int32_t> expected;
    for (int r = communicator.size() - 1; r >= 0; --r) {
      if (r % 2 == color) expected.push_back(r);
    }
    EXPECT_EQ(members, expected);
    EXPECT_EQ(expected[static_cast<std::size_t>(part->rank())], communicator.rank());
    const auto alone = part->split(part->rank(), 0);
    EXPECT_EQ(alone->size(), 1);
  });
}

TEST_P(CommunicatorContract, MessagesOfSplitCommunicatorsDoNotMix) {
  on_every_rank([](Communicator& communicator, std::uint64_t) {
    const auto twin = communicator.split(0, communicator.rank());
    const int next = (communicator.rank() + 1) % communicator.size();
    const int previous = (communicator.rank() + communicator.size() - 1) % communicator.size();
    const std::vector<double> one{1}, two{2};
    std::array<Transfer, 2> sends{communicator.isend(std::span(one), next, 0), twin->isend(std::span(two), next, 0)};
    std::vector<double> from_twin(1), from_world(1);
    twin->receive(std::span(from_twin), previous, 0);
    communicator.receive(std::span(from_world), previous, 0);
    wait_all(sends);
    EXPECT_EQ(from_twin[0], 2);
    EXPECT_EQ(from_world[0], 1);
  });
}

TEST_P(CommunicatorContract, BytesOfAnyLengthAreGathered) {
  on_every_rank([](Communicator& communicator, std::uint64_t) {
    const auto text_of = [](int rank) {
      return std::string(static_cast<std::size_t>(rank) * 3, static_cast<char>('a' + rank));
    };
    const std::vector<std::string> all = all_gather_bytes(communicator, text_of(communicator.rank()));
    for (int r = 0; r < communicator.size(); ++r) EXPECT_EQ(all.at(static_cast<std::size_t>(r)), text_of(r));
    const int last = communicator.size() - 1;
    EXPECT_EQ(broadcast_bytes(communicator, text_of(communicator.rank()), last), text_of(last));
  });
}

TEST_P(CommunicatorContract, SumsInBFloat16RoundOnce) {
  on_every_rank([](Communicator& communicator, std::uint64_t) {
    // 256 + 1 is not a bf16 number: rounding after each addition would lose every 1.
    std::vector<BFloat16> data(9, BFloat16(communicator.rank() == 0 ? 256.0F : 1.0F));
    communicator.all_reduce(std::span(data));
    const BFloat16 expected(256.0F + static_cast<float>(communicator.size() - 1));
    for (const BFloat16 value : data) EXPECT_EQ(value.bits, expected.bits);
  });
}

TEST_P(CommunicatorContract, ATransferIsDoneWhenItsMessageIsThere) {
  on_every_rank([](Communicator& communicator, std::uint64_t seed) {
    const int next = (communicator.rank() + 1) % communicator.size();
    const int previous = (communicator.rank() + communicator.size() - 1) % communicator.size();
    EXPECT_TRUE(Transfer().done());
    std::vector<float> taken(2051);
    Transfer receive = communicator.irecv(std::span(taken), previous, 5);
    // No rank sends before every rank has seen that nothing is there.
    EXPECT_FALSE(receive.done());
    communicator.barrier();
    const std::vector<float> given = values_of<float>(seed, communicator.rank(), taken.size());
    Transfer send = communicator.isend(std::span(given), next, 5);
    while (!receive.done() || !send.done()) std::this_thread::yield();
    EXPECT_TRUE(receive.done());
    receive.wait();
    EXPECT_TRUE(receive.done());
    send.wait();
    EXPECT_EQ(taken, values_of<float>(seed, previous, taken.size()));
  });
}

TEST_P(CommunicatorContract, CountsTheBytesThatThisRankGives) {
  on_every_rank([](Communicator& communicator, std::uint64_t) {
    // A communicator of its own, on which nothing has been counted.
    const auto fresh = communicator.split(0, communicator.rank());
    const auto ranks = static_cast<std::size_t>(fresh->size());
    const int last = fresh->size() - 1;
    std::vector<float> few(3), all(3 * ranks);
    std::vector<BFloat16> wide(7 * ranks), part(7);
    std::vector<double> crossed(2 * ranks);
    fresh->all_reduce(std::span(few));
    fresh->all_reduce(std::span(part), Reduction::kMax);
    fresh->reduce_scatter(wide, std::span(part));
    fresh->ireduce(std::span(few), last).wait();
    fresh->iall_reduce(std::span(few)).wait();
    fresh->ireduce_scatter(wide, std::span(part)).wait();
    fresh->all_gather(few, std::span(all));
    fresh->broadcast(std::span(few), last);
    fresh->all_to_all(std::vector<double>(2 * ranks), std::span(crossed));
    EXPECT_EQ(fresh->given_bytes(Collective::kAllReduce), 2 * 3 * 4 + 7 * 2);
    EXPECT_EQ(fresh->given_bytes(Collective::kReduceScatter), 2 * 7 * 2 * ranks);
    EXPECT_EQ(fresh->given_bytes(Collective::kReduce), 3 * 4);
    EXPECT_EQ(fresh->given_bytes(Collective::kAllGather), 3 * 4);
    EXPECT_EQ(fresh->given_bytes(Collective::kBroadcast), fresh->rank() == last ? 3 * 4 : 0);
    EXPECT_EQ(fresh->given_bytes(Collective::kAllToAll), 2 * 8 * ranks);

    const int next = (fresh->rank() + 1) % fresh->size();
    const int previous = (fresh->rank() + fresh->size() - 1) % fresh->size();
    std::vector<float> taken_few(3);
    std::vector<BFloat16> taken_part(7);
    for (int repeat = 1; repeat <= 2; ++repeat) {
      std::array<Transfer, 2> sends{fresh->isend(std::span(few), next, 6), fresh->isend(std::span(part), next, 8)};
      fresh->receive(std::span(taken_few), previous, 6);
      fresh->receive(std::span(taken_part), previous, 8);
      wait_all(sends);
      EXPECT_EQ(fresh->sent_bytes(6), static_cast<std::uint64_t>(repeat) * 3 * 4);
      EXPECT_EQ(fresh->sent_bytes(8), static_cast<std::uint64_t>(repeat) * 7 * 2);
      EXPECT_EQ(fresh->sent_bytes(7), 0);
    }
  });
}

TEST_P(CommunicatorContract, CallsThatCannotBeRightAreRefusedBeforeTheyStart) {
  on_every_rank([](Communicator& communicator, std::uint64_t) {
    std::vector<float> one(1), many(static_cast<std::size_t>(communicator.size()) + 1);
    EXPECT_THROW(communicator.broadcast(std::span(one), communicator.size()), Error);
    EXPECT_THROW(static_cast<void>(communicator.ireduce(std::span(one), communicator.size())), Error);
    EXPECT_THROW(communicator.all_gather(one, std::span(many)), Error);
    EXPECT_THROW(communicator.send(std::span(one), -1, 0), Error);
    EXPECT_THROW(communicator.send(std::span(one), 0, kLargestTag + 1), Error);
    EXPECT_THROW(static_cast<void>(communicator.split(-1, 0)), Error);
  });
}

TEST_P(CommunicatorContract, AMessageOfAnotherLengthIsRefused) {
  on_every_rank([](Communicator& communicator, std::uint64_t) {
    const int next = (communicator.rank() + 1) % communicator.size();
    const int previous = (communicator.rank() + communicator.size() - 1) % communicator.size();
    std::vector<float> sent(3), wanted(5);
    Transfer send = communicator.isend(std::span(sent), next, 1);
    EXPECT_THROW(communicator.receive(std::span(wanted), previous, 1), Error);
    send.wait();
  });
}

inline std::string name_of_ranks(const ::testing::TestParamInfo<Ranks>& info) { return info.param.name; }

// One seed for ranks that are processes: the first one's.
inline std::uint64_t common_seed(Communicator& communicator) {
  std::vector<std::int64_t> seed{static_cast<std::int64_t>(Random().seed() >> 16)};
  communicator.broadcast(std::span(seed), 0);
  return static_cast<std::uint64_t>(seed[0]);
}

}  // namespace kvloom::test
