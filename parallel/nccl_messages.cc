#include "parallel/nccl_messages.h"

#include <cstring>
#include <utility>

#include "kernels/error.h"

namespace kvloom {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kBetweenLooks{20};
constexpr int kSender = 0;  // their ranks in the NCCL communicator of a pair
constexpr int kReceiver = 1;

static_assert(sizeof(ncclUniqueId) == sizeof(MessageHeader::id));

}  // namespace

NcclMessages::NcclMessages(NcclMonitor& monitor, const CudaStream& compute, PinnedPool& pinned, int rank,
                           const NcclOptions& options)
    : monitor_(monitor),
      compute_(compute),
      pinned_(pinned),
      rank_(rank),
      blocks_(options.message_blocks),
      make_room_(options.make_room),
      own_(compute.device()),
      attendant_([this] { attend(); }) {}

NcclMessages::~NcclMessages() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  attendant_.join();
}

std::string NcclMessages::what(const char* operation, const NcclMessage& message) const {
  return fmt::format("{} of {} {} from rank {} to rank {}, tag {}, on rank {}", operation, message.count,
                     name_of(message.dtype), message.from, message.to, message.tag, rank_);
}

// Tells the receiver, and opens the pair's communicator with the first message: the receiver's thread does the same
// when it hears of it.
NcclMessages::Pair& NcclMessages::announce(const NcclMessage& message) {
  MessageHeader header{.communicator = message.communicator,
                       .count = message.count,
                       .from = message.from,
                       .tag = message.tag,
                       .dtype = static_cast<std::int32_t>(message.dtype)};
  const auto known = outgoing_.find(message.to);
  if (known != outgoing_.end()) {
    links_.send(message.to, header);
    return known->second;
  }
  ncclUniqueId id;
  check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
  std::memcpy(header.id.data(), &id, sizeof(id));
  header.opens = 1;
  links_.send(message.to, header);
  return outgoing_.emplace(message.to, open_pair(id, kSender)).first->second;
}

NcclMessages::Pair NcclMessages::open_pair(const ncclUniqueId& id, int own_rank) const {
  make_room_for_nccl(compute_.device(), make_room_);
  return {NcclHandle::open(monitor_, id, own_rank, 2, blocks_), std::make_unique<CudaStream>(compute_.device())};
}

std::shared_ptr<NcclMessages::Sending> NcclMessages::send(const NcclMessage& message, const void* data) {
  monitor_.throw_if_failed(what("isend", message));
  enter_cuda_device(compute_.device());
  auto sending = std::make_shared<Sending>();
  sending->done = std::make_shared<CudaEvent>(compute_.device());
  if (message.bytes() > 0 && !is_device_memory(data)) {
    sending->staged = pinned_.take(message.bytes());
    std::memcpy(sending->staged->data(), data, message.bytes());
    data = sending->staged->data();
  }
  if (message.to == rank_) {
    send_to_self(message, data, *sending);
    return sending;
  }
  Pair& pair = announce(message);
  const CudaStream& stream = *pair.stream;
  if (message.bytes() > 0) {
    if (sending->staged != nullptr) {
      sending->copy = std::make_unique<StreamBuffer>(stream, message.bytes(), make_room_);
      stream.copy(sending->copy->data(), data, message.bytes());
      data = sending->copy->data();
    } else {
      stream.wait_for(compute_);
    }
    auto begun = std::make_shared<CudaEvent>(compute_.device());
    begun->record(stream);
    pair.handle->call("ncclSend", what("isend", message), [&](ncclComm_t communicator) {
      return ncclSend(data, message.bytes(), ncclUint8, kReceiver, communicator, stream.get());
    });
    sending->done->record(stream);
    monitor_.watch(what("isend", message), std::move(begun), sending->done);
  }
  return sending;
}

void NcclMessages::send_to_self(const NcclMessage& message, const void* data, Sending& sending) {
  if (sending.staged == nullptr) own_.wait_for(compute_);
  Early early{message, std::make_unique<StreamBuffer>(own_, message.bytes(), make_room_), sending.done};
  own_.copy(early.data->data(), data, message.bytes());
  sending.done->record(own_);
  const std::lock_guard lock(mutex_);
  if (const auto posted = next_posted(key_of(message))) {
    take(*posted, early);
  } else {
    early_[key_of(message)].push_back(std::move(early));
  }
}

void NcclMessages::wait(const NcclMessage& message, Sending& sending) {
  if (sending.staged != nullptr) {
    monitor_.wait(*sending.done, what("isend", message));
  } else {
    monitor_.throw_if_failed(what("isend", message));
    compute_.wait_for(*sending.done);
  }
}

std::shared_ptr<NcclMessages::Receiving> NcclMessages::receive(const NcclMessage& message, void* data) {
  monitor_.throw_if_failed(what("irecv", message));
  enter_cuda_device(compute_.device());
  auto receiving = std::make_shared<Receiving>(
      Receiving{.message = message, .data = data, .to_host = message.bytes() > 0 && !is_device_memory(data)});
  receiving->posted = std::make_unique<CudaEvent>(compute_.device());
  receiving->posted->record(compute_);
  receiving->done = std::make_shared<CudaEvent>(compute_.device());
  if (receiving->to_host) receiving->staged = pinned_.take(message.bytes());

  const Key key = key_of(message);
  const std::lock_guard lock(mutex_);
  std::deque<Early>& early = early_[key];
  if (early.empty()) {
    posted_[key].push_back(receiving);
  } else {
    take(*receiving, early.front());
    early.pop_front();
  }
  return receiving;
}

void NcclMessages::wait(Receiving& receiving) {
  const std::string name = what("irecv", receiving.message);
  {
    const Deadline deadline = after(monitor_.limit());
    std::unique_lock lock(mutex_);
    while (!receiving.started) {
      monitor_.throw_if_failed(name);
      if (std::chrono::steady_clock::now() > deadline) {
        lock.unlock();
        monitor_.fail_all(fmt::format("{}: nothing was sent within {:.1f} s", name,
                                      std::chrono::duration<double>(monitor_.limit()).count()));
        lock.lock();
      } else {
        changed_.wait_for(lock, kBetweenLooks);
      }
    }
  }
  if (!receiving.error.empty()) fail("{}", receiving.error);
  if (receiving.to_host) {
    monitor_.wait(*receiving.done, name);
    std::memcpy(receiving.data, receiving.staged->data(), receiving.message.bytes());
  } else {
    monitor_.throw_if_failed(name);
    compute_.wait_for(*receiving.done);
  }
}

bool NcclMessages::done(const Receiving& receiving) {
  const std::lock_guard lock(mutex_);
  return receiving.started && (!receiving.error.empty() || receiving.done->reached());
}

void NcclMessages::give_up(const std::shared_ptr<Receiving>& receiving) noexcept {
  try {
    {
      const std::lock_guard lock(mutex_);
      posted_[key_of(receiving->message)].remove(receiving);
      if (!receiving->started) return;
    }
    if (receiving->error.empty()) monitor_.wait(*receiving->done, what("irecv", receiving->message));
  } catch (const std::exception&) {
    // Told to whoever calls next.
  }
}

void NcclMessages::attend() {
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (ends_) return;
    }
    try {
      enter_cuda_device(compute_.device());
      for (const MessageHeader& header : links_.poll(kBetweenLooks)) accept(header);
    } catch (const std::exception& error) {
      monitor_.fail_all(error.what());
    }
  }
}

void NcclMessages::accept(const MessageHeader& header) {
  const NcclMessage message{.communicator = header.communicator,
                            .from = header.from,
                            .to = rank_,
                            .tag = header.tag,
                            .count = header.count,
                            .dtype = static_cast<DType>(header.dtype)};
  if (header.opens != 0) {
    ncclUniqueId id;
    std::memcpy(&id, header.id.data(), sizeof(id));
    Pair opened = open_pair(id, kReceiver);
    const std::lock_guard lock(mutex_);
    incoming_.emplace(message.from, std::move(opened));
  }
  const std::lock_guard lock(mutex_);
  Pair& pair = incoming_.at(message.from);
  const std::shared_ptr<Receiving> posted = next_posted(key_of(message));
  if (posted == nullptr) {
    early_[key_of(message)].push_back(receive_early(message, pair));
  } else if (posted->message.count != message.count || posted->message.dtype != message.dtype || posted->to_host) {
    Early early = receive_early(message, pair);
    take(*posted, early);
  } else {
    pair.stream->wait_for(*posted->posted);
    receive_into(message, posted->data, pair);
    posted->done->record(*pair.stream);
    posted->started = true;
  }
  changed_.notify_all();
}

std::shared_ptr<NcclMessages::Receiving> NcclMessages::next_posted(const Key& key) {
  const auto waiting = posted_.find(key);
  if (waiting == posted_.end() || waiting->second.empty()) return nullptr;
  std::shared_ptr<Receiving> first = std::move(waiting->second.front());
  waiting->second.pop_front();
  return first;
}

// A message that came in memory of its own goes where the receive wants it, if it is what the receive wants.
void NcclMessages::take(Receiving& receiving, Early& early) {
  const NcclMessage& wanted = receiving.message;
  receiving.started = true;
  if (wanted.count != early.message.count || wanted.dtype != early.message.dtype) {
    receiving.error = fmt::format("{}: the message has {} {}", what("irecv", wanted), early.message.count,
                                  name_of(early.message.dtype));
    return;
  }
  if (wanted.bytes() == 0) return;
  const CudaStream& stream = early.data->stream();
  stream.wait_for(*early.done);
  stream.wait_for(*receiving.posted);
  stream.copy(receiving.to_host ? static_cast<void*>(receiving.staged->data()) : receiving.data, early.data->data(),
              wanted.bytes());
  receiving.done->record(stream);
}

NcclMessages::Early NcclMessages::receive_early(const NcclMessage& message, Pair& pair) {
  Early early{message, std::make_unique<StreamBuffer>(*pair.stream, message.bytes(), make_room_),
              std::make_shared<CudaEvent>(compute_.device())};
  receive_into(message, early.data->data(), pair);
  early.done->record(*pair.stream);
  return early;
}

void NcclMessages::receive_into(const NcclMessage& message, void* data, Pair& pair) {
  if (message.bytes() == 0) return;
  auto begun = std::make_shared<CudaEvent>(compute_.device());
  auto done = std::make_shared<CudaEvent>(compute_.device());
  begun->record(*pair.stream);
  pair.handle->call("ncclRecv", what("irecv", message), [&](ncclComm_t communicator) {
    return ncclRecv(data, message.bytes(), ncclUint8, kSender, communicator, pair.stream->get());
  });
  done->record(*pair.stream);
  monitor_.watch(what("irecv", message), std::move(begun), std::move(done));
}

}  // namespace kvloom
