// What ranks tell one another beside NCCL, over TCP: that a message is under way, of which tag, type and length. NCCL
// itself matches messages by order alone, and one of another length hangs.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "parallel/socket.h"

namespace kvloom {

// Goes over the wire as it stands: ranks are of one architecture.
struct MessageHeader {
  std::array<char, 8> mark{'k', 'v', 'l', 'o', 'o', 'm', '-', 'm'};
  std::uint64_t communicator = 0;  // the same number on all of its ranks, another than any other's
  std::uint64_t count = 0;         // elements
  std::int32_t from = 0;           // rank in the world
  std::int32_t tag = 0;
  std::int32_t dtype = 0;
  std::int32_t opens = 0;  // 1: the first from this rank; `id` is their NCCL communicator's
  std::array<char, 128> id{};
};

// One rank's end. `send` from one thread and `poll` from another may run at the same time.
class MessageLinks {
 public:
  MessageLinks();

  // Where others reach this rank: "machine:port".
  std::string address() const;
  // Everyone's address, by rank. Before the first `send`.
  void set_peers(std::vector<std::string> addresses) { addresses_ = std::move(addresses); }

  // In order for each rank. Throws Error naming the rank when it cannot be reached.
  void send(int to, const MessageHeader& header);

  // What has come, in order for each sender; waits up to `time` for the first.
  std::vector<MessageHeader> poll(std::chrono::milliseconds time);

 private:
  struct Incoming {
    Socket socket;
    std::string partial;  // less than a header
  };

  // False when the other side has closed or is no rank.
  static bool take(Incoming& incoming, std::vector<MessageHeader>& headers);

  Socket listener_;
  std::vector<std::string> addresses_;
  std::map<int, Socket> outgoing_;  // of the sending thread
  std::vector<Incoming> incoming_;  // of the polling thread
};

}  // namespace kvloom
