// The calls of NCCL that kvloom makes, for ranks that are threads of one process and device memory of support/simt. All
// communicators are non-blocking and say when they are ready as NCCL's do: a call begins work for a thread of the
// communicator's, which waits for the other ranks; until it is done the state is "in progress", and the communicator
// takes no other call. Collectives and messages are then done by their streams, in order.
#pragma once

#include <nccl.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/simt/capture.h"

namespace kvloom::nccl_threads {

// What a rank brings to a collective.
struct Offer {
  const void* input = nullptr;
  void* output = nullptr;
  int color = 0;
  int key = 0;
};

struct Message {
  const void* data;
  std::size_t bytes;
  bool taken = false;
};

struct Group;

}  // namespace kvloom::nccl_threads

struct ncclComm {
  ncclComm(std::shared_ptr<kvloom::nccl_threads::Group> members, int number)
      : group(std::move(members)), rank(number) {}

  std::shared_ptr<kvloom::nccl_threads::Group> group;
  int rank;
  std::uint64_t turn = 0;
  std::atomic<ncclResult_t> state{ncclSuccess};
  std::atomic<ncclResult_t> failure{ncclSuccess};  // of what a stream has done
  std::atomic<bool> aborted{false};
  std::atomic<int> in_streams{0};  // calls that streams have yet to do
  std::thread job;
};

namespace kvloom::nccl_threads {

// The ranks of a communicator.
struct Group {
  explicit Group(int ranks) : size(ranks) {}

  struct Meeting {
    std::vector<Offer> offers;
    int came = 0;
    int left = 0;
    bool done = false;
    bool broken = false;                          // a rank was aborted, and what it offered may be gone
    std::map<int, std::shared_ptr<Group>> parts;  // by color
  };

  using Work = std::function<void(Meeting&)>;

  // All ranks come with the same turn; the last one does the work, and each takes what has come of it.
  ncclResult_t meet(
      ncclComm& self, const Offer& offer, const Work& work, const Work& take = [](Meeting&) {}) {
    std::unique_lock lock(mutex);
    const std::uint64_t turn = self.turn++;
    Meeting& meeting = meetings[turn];
    meeting.offers.resize(static_cast<std::size_t>(size));
    meeting.offers[static_cast<std::size_t>(self.rank)] = offer;
    if (++meeting.came == size && !meeting.broken) {
      work(meeting);
      meeting.done = true;
      changed.notify_all();
    }
    changed.wait(lock, [&] { return meeting.done || meeting.broken || self.aborted; });
    if (!meeting.done) meeting.broken = true;
    const ncclResult_t result = meeting.done ? ncclSuccess : ncclInternalError;
    if (meeting.done) take(meeting);
    if (++meeting.left == size) meetings.erase(turn);
    return result;
  }

  int size;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::uint64_t, Meeting> meetings;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> messages;  // by sender and receiver
};

// Begins what `work` does; NCCL refuses a communicator whose last call is still under way.
template <typename Work>
ncclResult_t begin(ncclComm_t communicator, Work work) {
  if (communicator->state != ncclSuccess) return ncclInvalidArgument;
  if (communicator->job.joinable()) communicator->job.join();
  communicator->state = ncclInProgress;
  communicator->job = std::thread([communicator, work] {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    communicator->state = work();
  });
  return ncclInProgress;
}

// What a stream does in its order: NCCL says success once the stream has been given it, and of failures later.
template <typename Work>
ncclResult_t begin_in(cudaStream_t stream, ncclComm_t communicator, Work work) {
  return begin(communicator, [=] {
    ++communicator->in_streams;
    simt::give(stream, [=] {
      const ncclResult_t result = work();
      if (result != ncclSuccess) communicator->failure = result;
      --communicator->in_streams;
    });
    return ncclSuccess;
  });
}

}  // namespace kvloom::nccl_threads
