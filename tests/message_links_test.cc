#include "parallel/message_links.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "kernels/error.h"

namespace kvloom {
namespace {

using std::chrono::milliseconds;

TEST(MessageLinks, HeadersOfEachSenderArriveWholeAndInOrder) {
  constexpr int kRanks = 4;
  constexpr int kEach = 200;
  std::vector<std::unique_ptr<MessageLinks>> links;
  std::vector<std::string> addresses;
  for (int rank = 0; rank < kRanks; ++rank) {
    links.push_back(std::make_unique<MessageLinks>());
    addresses.push_back(links.back()->address());
  }
  for (auto& link : links) link->set_peers(addresses);

  // A stranger's bytes end its own connection only.
  const auto colon = addresses[0].rfind(':');
  const Socket stranger =
      Socket::connect("127.0.0.1", std::stoi(addresses[0].substr(colon + 1)), after(milliseconds(5000)));
  stranger.write(std::string(300, 'x'), after(milliseconds(1000)));

  std::vector<std::jthread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      for (int i = 0; i < kEach; ++i) {
        for (int to = 0; to < kRanks; ++to) {
          MessageHeader header{.count = static_cast<std::uint64_t>(i), .from = rank, .tag = to};
          header.id.back() = static_cast<char>(i);
          links[static_cast<std::size_t>(rank)]->send(to, header);
        }
      }
    });
  }
  for (int rank = 0; rank < kRanks; ++rank) {
    std::vector<int> next(kRanks, 0);
    int taken = 0;
    const Deadline deadline = after(milliseconds(20000));
    while (taken < kRanks * kEach && std::chrono::steady_clock::now() < deadline) {
      for (const MessageHeader& header : links[static_cast<std::size_t>(rank)]->poll(milliseconds(50))) {
        EXPECT_EQ(header.tag, rank);
        const int number = next[static_cast<std::size_t>(header.from)]++;
        EXPECT_EQ(header.count, static_cast<std::uint64_t>(number));
        EXPECT_EQ(header.id.back(), static_cast<char>(number));
        ++taken;
      }
    }
    EXPECT_EQ(taken, kRanks * kEach);
  }
}

TEST(MessageLinks, NothingComesWithinTheTimeWhenNothingIsSent) {
  MessageLinks links;
  EXPECT_TRUE(links.poll(milliseconds(20)).empty());
}

}  // namespace
}  // namespace kvloom
