#include "parallel/nccl_transfers.h"

#include <cstring>
#include <exception>
#include <utility>

namespace kvloom {

NcclSend::NcclSend(std::shared_ptr<NcclRank> rank, const NcclMessage& message,
                   std::shared_ptr<NcclMessages::Sending> sending)
    : rank_(std::move(rank)), message_(message), sending_(std::move(sending)) {}

NcclSend::~NcclSend() {
  try {
    if (!waited_) rank_->monitor.wait(*sending_->done, "isend");
  } catch (const std::exception&) {
    // Told to whoever calls next.
  }
}

void NcclSend::wait() {
  waited_ = true;
  rank_->messages.wait(message_, *sending_);
}

NcclReceive::NcclReceive(std::shared_ptr<NcclRank> rank, std::shared_ptr<NcclMessages::Receiving> receiving)
    : rank_(std::move(rank)), receiving_(std::move(receiving)) {}

NcclReceive::~NcclReceive() {
  if (!waited_) rank_->messages.give_up(receiving_);
}

void NcclReceive::wait() {
  rank_->messages.wait(*receiving_);
  waited_ = true;
}

NcclBuffer::NcclBuffer(NcclRank& rank, const CudaStream& stream, const void* data, std::size_t bytes)
    : stream_(stream), bytes_(bytes) {
  if (bytes == 0 || is_device_memory(data)) {
    data_ = const_cast<void*>(data);
    return;
  }
  host_ = const_cast<void*>(data);
  staged_ = rank.pinned.take(bytes);
  copy_ = std::make_unique<StreamBuffer>(stream, bytes, rank.make_room);
  data_ = copy_->data();
}

void NcclBuffer::load() {
  if (!is_host()) return;
  std::memcpy(staged_->data(), host_, bytes_);
  stream_.copy(data_, staged_->data(), bytes_);
}

void NcclBuffer::begin_to_store() {
  if (is_host()) stream_.copy(staged_->data(), data_, bytes_);
}

void NcclBuffer::end_to_store() {
  if (is_host()) std::memcpy(host_, staged_->data(), bytes_);
}

NcclCollective::NcclCollective(std::shared_ptr<NcclRank> rank, std::string what, std::shared_ptr<CudaEvent> done,
                               std::unique_ptr<NcclBuffer> input, std::unique_ptr<NcclBuffer> output)
    : rank_(std::move(rank)),
      what_(std::move(what)),
      done_(std::move(done)),
      input_(std::move(input)),
      output_(std::move(output)) {}

NcclCollective::~NcclCollective() {
  try {
    if (!waited_) finish();
  } catch (const std::exception&) {
    // Told to whoever calls next.
  }
}

void NcclCollective::wait() {
  waited_ = true;
  rank_->monitor.throw_if_failed(what_);
  finish();
  output_->end_to_store();
}

// Buffers of the device are free in the compute stream's order, those of the host when the host has waited.
void NcclCollective::finish() {
  rank_->compute.wait_for(*done_);
  if (output_->is_host() || (input_ != nullptr && input_->is_host())) rank_->monitor.wait(*done_, what_);
}

}  // namespace kvloom
