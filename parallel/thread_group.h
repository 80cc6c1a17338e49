// What the threads of run_thread_ranks share: who has failed or ended, and for each communicator a meeting place and
// mailboxes.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/dtype.h"
#include "parallel/communicator.h"

namespace kvloom {

// One a run, shared by all its communicators. `mutex` guards everything here and in the groups.
struct ThreadWorld {
  explicit ThreadWorld(int ranks) : ended(static_cast<std::size_t>(ranks), false) {}

  // The first one counts. Wakes every rank.
  void rank_failed(int rank, std::exception_ptr exception);
  void rank_ended(int rank);

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<bool> ended;
  std::exception_ptr first_exception;
  std::string failure;  // "rank 2 failed: ..."; empty while none has
};

// What a rank brings to a collective.
struct Contribution {
  const char* operation = "";
  const void* input = nullptr;
  void* output = nullptr;
  std::size_t count = 0;
  DType dtype = DType::kU8;
  int detail = 0;  // root or reduction

  bool agrees_with(const Contribution& other) const;
};

class ThreadGroup {
 public:
  // `members`: rank in the world by rank in this group.
  ThreadGroup(std::shared_ptr<ThreadWorld> world, std::vector<int> members);

  int size() const { return static_cast<int>(members_.size()); }
  const std::vector<int>& members() const { return members_; }
  const std::shared_ptr<ThreadWorld>& world() const { return world_; }

  // Every rank calls both. Between them every rank may read all contributions and write what they point to. `enter`
  // throws when a rank has failed or ended or brings something else; `leave` never does.
  const std::vector<Contribution>& enter(int rank, const Contribution& contribution);
  void leave();

  struct Message {
    std::vector<std::byte> bytes;
    DType dtype = DType::kU8;
  };
  void post(int from, int to, int tag, Message message);
  // The place of the next receive among those of this sender and tag.
  std::uint64_t next_receive(int from, int to, int tag);
  Message take(int from, int to, int tag, std::uint64_t place);
  // True when `take` would return, or throw, without waiting.
  bool settled(int from, int to, int tag, std::uint64_t place) const;

 private:
  struct Mailbox {
    std::uint64_t sent = 0;
    std::uint64_t asked = 0;
    std::map<std::uint64_t, Message> waiting;
  };

  // True when this call was the last of the meeting.
  bool arrive();
  int ended_member() const;  // -1: none

  std::shared_ptr<ThreadWorld> world_;
  std::vector<int> members_;
  std::vector<Contribution> contributions_;
  int arrived_ = 0;
  std::uint64_t generation_ = 0;
  std::map<std::tuple<int, int, int>, Mailbox> mailboxes_;  // from, to, tag
};

}  // namespace kvloom
