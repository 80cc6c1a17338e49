// What the threads of run_thread_ranks share: who has failed or ended, and for each communicator a meeting place and
// mailboxes.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
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

// What is to be done once every rank has come: pieces that any rank may do, side by side with others. None throws.
struct PieceWork {
  std::size_t pieces = 0;
  std::function<void(const std::vector<Contribution>& all, std::size_t piece)> run;
};

class ThreadGroup {
 public:
  // `members`: rank in the world by rank in this group.
  ThreadGroup(std::shared_ptr<ThreadWorld> world, std::vector<int> members);

  int size() const { return static_cast<int>(members_.size()); }
  const std::vector<int>& members() const { return members_; }
  const std::shared_ptr<ThreadWorld>& world() const { return world_; }

  // Starts this rank's next collective and returns its place among them. What the contribution points to belongs to it
  // until `finish` or `give_up`, one of which follows. The work is the same on every rank.
  std::uint64_t start(int rank, const Contribution& contribution, PieceWork work);
  // Waits until every rank has started it, helps with the work, and returns when it is done. Throws when a rank has
  // failed, ended or given up before it came, or brings something else; then nobody touches this rank's buffers.
  void finish(int rank, std::uint64_t place);
  // True when `finish` would not wait for a rank that has yet to come.
  bool ready(std::uint64_t place);
  // Takes this rank's buffers out of it, for good.
  void give_up(int rank, std::uint64_t place) noexcept;

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

  // A collective, from the first rank that starts it to the last that leaves it.
  struct Meeting {
    explicit Meeting(std::size_t ranks) : contributions(ranks), here(ranks, false) {}

    std::vector<Contribution> contributions;
    std::vector<bool> here;
    int arrived = 0;
    int left = 0;
    PieceWork work;
    std::size_t next_piece = 0;
    std::size_t in_progress = 0;
    std::string failure;  // why it cannot take place; empty: it can
  };

  // Sets the meeting's failure when a rank that it waits for cannot come.
  void look_for_absent(Meeting& meeting) const;
  std::string disagreement(const Meeting& meeting) const;
  void leave(std::uint64_t place);

  std::shared_ptr<ThreadWorld> world_;
  std::vector<int> members_;
  std::vector<std::uint64_t> started_;                      // by rank: how many
  std::map<std::uint64_t, Meeting> meetings_;               // by place
  std::map<std::tuple<int, int, int>, Mailbox> mailboxes_;  // from, to, tag
};

}  // namespace kvloom
