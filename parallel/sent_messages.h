// Messages on their way to other ranks. A transfer keeps the address of what it sends, so each message stays where it
// is until all its transfers are done.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "parallel/communicator.h"

namespace kvloom {

template <typename Message>
class SentMessages {
 public:
  // `start(message, transfers)` begins the transfers, which it appends, of the message in its place.
  template <typename Start>
  void add(Message message, const Start& start) {
    while (!sent_.empty() && std::ranges::all_of(sent_.front().transfers, &Transfer::done)) drop_first();
    Sent& sent = sent_.emplace_back(Sent{std::move(message), {}});
    start(sent.message, sent.transfers);
  }

  // Returns when all have left.
  void finish() {
    while (!sent_.empty()) drop_first();
  }

 private:
  struct Sent {
    Message message;
    std::vector<Transfer> transfers;
  };
  void drop_first() {
    wait_all(sent_.front().transfers);
    sent_.pop_front();
  }

  std::deque<Sent> sent_;
};

// A text goes as its length and, when that is above 0, its bytes. Other lengths mean what sender and receiver agree on.
struct TextMessage {
  std::int64_t length;
  std::string text;
};

inline std::span<std::uint8_t> as_bytes(std::string& text) {
  return {reinterpret_cast<std::uint8_t*>(text.data()), text.size()};
}

inline void start_text(TextMessage& message, Communicator& ranks, int to, int tag, std::vector<Transfer>& transfers) {
  transfers.push_back(ranks.isend(std::span(&message.length, 1), to, tag));
  if (message.length > 0) transfers.push_back(ranks.isend(as_bytes(message.text), to, tag));
}

// The bytes behind a length that has come. Throws Error for a length below 0.
std::string receive_text(Communicator& ranks, std::int64_t length, int from, int tag);

}  // namespace kvloom
