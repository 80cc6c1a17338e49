// Rank 0 listens, each other rank calls and says who it is, and gets rank 0's bytes or the reason why there are none.
#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/error.h"
#include "parallel/rendezvous_ways.h"
#include "parallel/socket.h"

namespace kvloom {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kPatience{2000};  // with a caller that says nothing, or an answer under way

struct Hello {
  std::array<char, 8> mark{'k', 'v', 'l', 'o', 'o', 'm', '-', '1'};
  std::int32_t rank = 0;
  std::int32_t world_size = 0;
};

struct Answer {
  std::int64_t met = 0;  // 1: rank 0's bytes follow; 0: a reason does
  std::int64_t bytes = 0;
};

constexpr std::int64_t kLargestAnswer = 1 << 24;

template <typename T>
std::string_view bytes_of(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

template <typename T>
T read_as(const Socket& socket, Deadline deadline) {
  T value;
  std::memcpy(static_cast<void*>(&value), socket.read(sizeof(T), deadline).data(), sizeof(T));
  return value;
}

std::string name_of(const MeetingPlace& place) { return fmt::format("rendezvous at {}:{}", place.address, place.port); }

// The ranks that have come to rank 0.
class Visitors {
 public:
  Visitors(const MeetingPlace& place) : place_(place), sockets_(static_cast<std::size_t>(place.world_size)) {}

  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (int rank = 1; rank < place_.world_size; ++rank) {
      if (!sockets_[static_cast<std::size_t>(rank)].open()) ranks.push_back(rank);
    }
    return ranks;
  }

  void take(Socket visitor) {
    Hello hello;
    try {
      hello = read_as<Hello>(visitor, after(kPatience));
    } catch (const Error&) {
      return;
    }
    if (hello.mark != Hello().mark) return;
    const bool in_range = hello.rank > 0 && hello.rank < place_.world_size;
    const bool taken = in_range && sockets_[static_cast<std::size_t>(hello.rank)].open();
    if (hello.world_size != place_.world_size) {
      refusal_ = sizes_differ(name_of(place_), hello.rank, hello.world_size, place_.world_size);
    } else if (!in_range || taken) {
      refusal_ = fmt::format("{}: two ranks say that they are rank {}", name_of(place_), hello.rank);
    }
    if (in_range && !taken) {
      sockets_[static_cast<std::size_t>(hello.rank)] = std::move(visitor);
    } else {
      sockets_.push_back(std::move(visitor));
    }
  }

  // Why the ranks cannot meet, although they come; empty: nothing stands in the way.
  const std::string& refusal() const { return refusal_; }

  void answer_all(const Answer& answer, const std::string& bytes) {
    for (const Socket& socket : sockets_) {
      if (!socket.open()) continue;
      socket.write(bytes_of(answer), after(kPatience));
      socket.write(bytes, after(kPatience));
    }
  }

  // Everyone who came hears the same.
  [[noreturn]] void give_up(const std::string& reason) {
    try {
      answer_all({0, static_cast<std::int64_t>(reason.size())}, reason);
    } catch (const Error&) {
      // One that is gone already needs no reason.
    }
    fail("{}", reason);
  }

 private:
  const MeetingPlace& place_;
  std::vector<Socket> sockets_;  // by rank; then those that had no place
  std::string refusal_;
};

}  // namespace

std::string not_all_came(const std::string& where, const std::vector<int>& missing, const MeetingPlace& place) {
  return fmt::format("{}: rank{} {} of {} did not come within {:.3g} s", where, missing.size() > 1 ? "s" : "",
                     fmt::join(missing, ", "), place.world_size, std::chrono::duration<double>(place.limit).count());
}

std::string sizes_differ(const std::string& where, int rank, int says, int world_size) {
  return fmt::format("{}: rank {} says that there are {} ranks, rank 0 says {}", where, rank, says, world_size);
}

std::string gather_at_socket(const MeetingPlace& place, const std::string& bytes) {
  Deadline deadline = after(place.limit);
  const Socket listener = Socket::listen(place.port);
  Visitors visitors(place);
  while (!visitors.missing().empty()) {
    std::optional<Socket> visitor = listener.accept(deadline);
    if (!visitor.has_value()) break;
    const bool fine = visitors.refusal().empty();
    visitors.take(std::move(*visitor));
    // Those under way should hear of it too.
    if (fine && !visitors.refusal().empty()) deadline = std::min(deadline, after(kPatience));
  }
  if (!visitors.refusal().empty()) visitors.give_up(visitors.refusal());
  if (!visitors.missing().empty()) visitors.give_up(not_all_came(name_of(place), visitors.missing(), place));
  visitors.answer_all({1, static_cast<std::int64_t>(bytes.size())}, bytes);
  return bytes;
}

std::string come_to_socket(const MeetingPlace& place) {
  Answer answer;
  std::string bytes;
  try {
    const Socket socket = Socket::connect(place.address, place.port, after(place.limit));
    socket.write(bytes_of(Hello{.rank = place.rank, .world_size = place.world_size}), after(kPatience));
    // Rank 0 waits as long as this rank does and may have begun later: what it says then should be heard.
    const Deadline deadline = after(place.limit + 2 * kPatience);
    answer = read_as<Answer>(socket, deadline);
    if (answer.bytes < 0 || answer.bytes > kLargestAnswer) fail("{}:{}: not a rank 0", place.address, place.port);
    bytes = socket.read(static_cast<std::size_t>(answer.bytes), deadline);
  } catch (const Error& error) {
    fail("{}: rank {} does not reach rank 0: {}", name_of(place), place.rank, error.what());
  }
  if (answer.met == 0) fail("{}", bytes);
  return bytes;
}

}  // namespace kvloom
