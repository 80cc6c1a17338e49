// What of NcclCommunicator's is under way: messages, collectives, and buffers of the host that are staged for them.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "core/cuda_stream.h"
#include "parallel/communicator.h"
#include "parallel/nccl_communicator.h"
#include "parallel/nccl_messages.h"
#include "parallel/nccl_monitor.h"

namespace kvloom {

// What the communicators of one rank share.
struct NcclRank {
  NcclRank(const CudaStream& stream, int rank, const NcclOptions& options)
      : compute(stream),
        world_rank(rank),
        make_room(options.make_room),
        monitor(stream.device(), options.limit, options.on_failure),
        messages(monitor, stream, pinned, rank, options) {}

  const CudaStream& compute;
  int world_rank;
  MakeRoom make_room;
  PinnedPool pinned;
  NcclMonitor monitor;
  NcclMessages messages;
};

class NcclSend final : public Transfer::State {
 public:
  NcclSend(std::shared_ptr<NcclRank> rank, const NcclMessage& message, std::shared_ptr<NcclMessages::Sending> sending);
  ~NcclSend() override;

  void wait() override;
  bool done() override { return sending_->done->reached(); }

 private:
  std::shared_ptr<NcclRank> rank_;
  NcclMessage message_;
  std::shared_ptr<NcclMessages::Sending> sending_;
  bool waited_ = false;
};

class NcclReceive final : public Transfer::State {
 public:
  NcclReceive(std::shared_ptr<NcclRank> rank, std::shared_ptr<NcclMessages::Receiving> receiving);
  ~NcclReceive() override;

  void wait() override;
  bool done() override { return rank_->messages.done(*receiving_); }

 private:
  std::shared_ptr<NcclRank> rank_;
  std::shared_ptr<NcclMessages::Receiving> receiving_;
  bool waited_ = false;
};

// A caller's buffer as NCCL takes it: itself, or a copy of a host buffer on the device.
class NcclBuffer {
 public:
  NcclBuffer(NcclRank& rank, const CudaStream& stream, const void* data, std::size_t bytes);

  void* data() const { return data_; }
  bool is_host() const { return host_ != nullptr; }

  void load();
  void begin_to_store();
  // Nothing more is given to the stream.
  void free_copy() { copy_.reset(); }
  // When the stream has done it.
  void end_to_store();

 private:
  const CudaStream& stream_;
  std::size_t bytes_;
  void* data_ = nullptr;
  void* host_ = nullptr;
  std::shared_ptr<PinnedBuffer> staged_;
  std::unique_ptr<StreamBuffer> copy_;
};

// A collective that the stream has been given. Until it is waited for, the compute stream goes on without it.
class NcclCollective final : public Transfer::State {
 public:
  // `input` is null when it works in place.
  NcclCollective(std::shared_ptr<NcclRank> rank, std::string what, std::shared_ptr<CudaEvent> done,
                 std::unique_ptr<NcclBuffer> input, std::unique_ptr<NcclBuffer> output);
  ~NcclCollective() override;

  void wait() override;
  bool done() override { return done_->reached(); }

 private:
  void finish();

  std::shared_ptr<NcclRank> rank_;
  std::string what_;
  std::shared_ptr<CudaEvent> done_;
  std::unique_ptr<NcclBuffer> input_;
  std::unique_ptr<NcclBuffer> output_;
  bool waited_ = false;
};

}  // namespace kvloom
