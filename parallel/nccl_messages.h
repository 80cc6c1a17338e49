// Messages between GPUs (nccl_communicator.h says how and why).
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "core/cuda_stream.h"
#include "core/pinned_pool.h"
#include "kernels/dtype.h"
#include "parallel/communicator.h"
#include "parallel/message_links.h"
#include "parallel/nccl_communicator.h"
#include "parallel/nccl_monitor.h"

namespace kvloom {

// A message as both sides name it. Ranks are the world's.
struct NcclMessage {
  std::uint64_t communicator;
  int from;
  int to;
  int tag;
  std::size_t count;
  DType dtype;

  std::size_t bytes() const { return count * size_of(dtype); }
};

// One a rank. Sending and receiving calls come from one thread at a time.
class NcclMessages {
 public:
  // `monitor`, `compute` and `pinned` outlive it.
  NcclMessages(NcclMonitor& monitor, const CudaStream& compute, PinnedPool& pinned, int rank,
               const NcclOptions& options);
  ~NcclMessages();
  NcclMessages(const NcclMessages&) = delete;
  NcclMessages& operator=(const NcclMessages&) = delete;

  std::string address() const { return links_.address(); }
  // Everyone's address, by rank. Before the first message.
  void set_peers(std::vector<std::string> addresses) { links_.set_peers(std::move(addresses)); }

  struct Sending {
    std::shared_ptr<PinnedBuffer> staged;  // of a host buffer
    std::unique_ptr<StreamBuffer> copy;
    std::shared_ptr<CudaEvent> done;
  };
  std::shared_ptr<Sending> send(const NcclMessage& message, const void* data);
  void wait(const NcclMessage& message, Sending& sending);

  struct Receiving {
    NcclMessage message;
    void* data;
    bool to_host;
    std::unique_ptr<CudaEvent> posted;  // the compute stream's: the buffer is free from there on
    bool started = false;               // NCCL has been told, or `error` says why not
    std::string error;
    std::shared_ptr<PinnedBuffer> staged;
    std::shared_ptr<CudaEvent> done;
  };
  std::shared_ptr<Receiving> receive(const NcclMessage& message, void* data);
  void wait(Receiving& receiving);
  bool done(const Receiving& receiving);
  // Takes back what has not started; waits for what has.
  void give_up(const std::shared_ptr<Receiving>& receiving) noexcept;

 private:
  using Key = std::tuple<std::uint64_t, int, int>;  // communicator, from, tag
  static Key key_of(const NcclMessage& message) { return {message.communicator, message.from, message.tag}; }

  // All that goes from one rank to another.
  struct Pair {
    std::shared_ptr<NcclHandle> handle;
    std::unique_ptr<CudaStream> stream;
  };
  // A message that came before its receive was posted.
  struct Early {
    NcclMessage message;
    std::unique_ptr<StreamBuffer> data;
    std::shared_ptr<CudaEvent> done;
  };

  Pair open_pair(const ncclUniqueId& id, int own_rank) const;
  Pair& announce(const NcclMessage& message);
  void send_to_self(const NcclMessage& message, const void* data, Sending& sending);
  void attend();
  void accept(const MessageHeader& header);
  void take(Receiving& receiving, Early& early);
  Early receive_early(const NcclMessage& message, Pair& pair);
  void receive_into(const NcclMessage& message, void* data, Pair& pair);
  std::shared_ptr<Receiving> next_posted(const Key& key);
  std::string what(const char* operation, const NcclMessage& message) const;

  NcclMonitor& monitor_;
  const CudaStream& compute_;
  PinnedPool& pinned_;
  int rank_;
  int blocks_;
  MakeRoom make_room_;
  MessageLinks links_;
  std::map<int, Pair> outgoing_;  // by receiver; of the calling thread
  CudaStream own_;                // messages to itself

  std::mutex mutex_;  // what follows
  std::condition_variable changed_;
  std::map<int, Pair> incoming_;  // by sender
  std::map<Key, std::list<std::shared_ptr<Receiving>>> posted_;
  std::map<Key, std::deque<Early>> early_;
  bool ends_ = false;
  std::thread attendant_;
};

}  // namespace kvloom
