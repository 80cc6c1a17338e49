#include "parallel/nccl_communicator.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/sum_parts.h"
#include "kernels/error.h"
#include "parallel/nccl_transfers.h"

namespace kvloom {
namespace {

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ncclFloat32;
    case DType::kBF16:
      return ncclBfloat16;
    case DType::kF64:
      return ncclFloat64;
    case DType::kI32:
      return ncclInt32;
    case DType::kI64:
      return ncclInt64;
    case DType::kU8:
      return ncclUint8;
    default:
      fail("NCCL: ranks do not exchange {}", name_of(dtype));
  }
}

ncclRedOp_t nccl_operation(Reduction reduction) { return reduction == Reduction::kSum ? ncclSum : ncclMax; }

const char* name_of(Reduction reduction) { return reduction == Reduction::kSum ? "sum" : "max"; }

std::byte* part_of(void* data, std::size_t part, std::size_t bytes) {
  return static_cast<std::byte*>(data) + part * bytes;
}

const std::byte* part_of(const void* data, std::size_t part, std::size_t bytes) {
  return static_cast<const std::byte*>(data) + part * bytes;
}

class NcclCommunicator final : public Communicator {
 public:
  // `members`: rank in the world by rank in this communicator. `number` is this communicator's alone.
  NcclCommunicator(std::shared_ptr<NcclRank> shared, std::shared_ptr<NcclHandle> handle, std::vector<int> members,
                   std::uint64_t number)
      : shared_(std::move(shared)),
        stream_(shared_->compute.device()),
        handle_(std::move(handle)),
        members_(std::move(members)),
        number_(number) {
    rank_ = static_cast<int>(std::find(members_.begin(), members_.end(), shared_->world_rank) - members_.begin());
  }

  // What the stream was given ends before NCCL takes the communicator apart, unless this rank is on its way down.
  ~NcclCommunicator() override {
    if (std::uncaught_exceptions() > 0) return;
    try {
      CudaEvent end(stream_.device());
      end.record(stream_);
      shared_->monitor.wait(end, "end of a communicator");
    } catch (const std::exception&) {
      // Told to whoever calls next.
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }

  // The host waits for a number that needs every rank's.
  void barrier() override {
    std::int32_t one = 1;
    do_all_reduce(&one, 1, DType::kI32, Reduction::kSum);
  }

 protected:
  void do_all_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    do_iall_reduce(data, count, dtype, reduction).wait();
  }

  void do_reduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                         Reduction reduction) override {
    do_ireduce_scatter(input, output, count, dtype, reduction).wait();
  }

  Transfer do_iall_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    const std::size_t bytes = count * size_of(dtype);
    const Call call{fmt::format("all_reduce ({}) of {} {}", name_of(reduction), count, kvloom::name_of(dtype)), data,
                    data, bytes, bytes};
    return start(call, [&](void* values, void*) {
      if (dtype == DType::kBF16 && reduction == Reduction::kSum && size() > 1) {
        return all_reduce_bf16(static_cast<BFloat16*>(values), count);
      }
      handle_->call("ncclAllReduce", running_, [&](ncclComm_t nccl) {
        return ncclAllReduce(values, values, count, nccl_type(dtype), nccl_operation(reduction), nccl, stream_.get());
      });
    });
  }

  Transfer do_ireduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                              Reduction reduction) override {
    const std::size_t bytes = count * size_of(dtype);
    const Call call{fmt::format("reduce_scatter ({}) to {} {}", name_of(reduction), count, kvloom::name_of(dtype)),
                    input, output, bytes * ranks(), bytes};
    return start(call, [&](const void* all, void* part) {
      if (dtype == DType::kBF16 && reduction == Reduction::kSum && size() > 1) {
        const StreamBuffer parts(stream_, bytes * ranks(), shared_->make_room);
        exchange(all, parts.data(), bytes);
        return sum(parts.data(), static_cast<BFloat16*>(part), count);
      }
      handle_->call("ncclReduceScatter", running_, [&](ncclComm_t nccl) {
        return ncclReduceScatter(all, part, count, nccl_type(dtype), nccl_operation(reduction), nccl, stream_.get());
      });
    });
  }

  Transfer do_ireduce(void* data, std::size_t count, DType dtype, int root, Reduction reduction) override {
    const std::size_t bytes = count * size_of(dtype);
    const Call call{
        fmt::format("reduce ({}) of {} {} to rank {}", name_of(reduction), count, kvloom::name_of(dtype), root), data,
        data, bytes, bytes};
    return start(call, [&](void* values, void*) {
      if (dtype == DType::kBF16 && reduction == Reduction::kSum && size() > 1) {
        return reduce_bf16(static_cast<BFloat16*>(values), count, root);
      }
      handle_->call("ncclReduce", running_, [&](ncclComm_t nccl) {
        return ncclReduce(values, values, count, nccl_type(dtype), nccl_operation(reduction), root, nccl,
                          stream_.get());
      });
    });
  }

  void do_all_gather(const void* input, void* output, std::size_t count, DType dtype) override {
    const std::size_t bytes = count * size_of(dtype);
    const Call call{fmt::format("all_gather of {} {}", count, kvloom::name_of(dtype)), input, output, bytes,
                    bytes * ranks()};
    run(call, [&](const void* part, void* all) { gather(part, all, bytes); });
  }

  void do_broadcast(void* data, std::size_t count, DType dtype, int root) override {
    const std::size_t bytes = count * size_of(dtype);
    const Call call{fmt::format("broadcast of {} {} from rank {}", count, kvloom::name_of(dtype), root), data, data,
                    bytes, bytes};
    run(call, [&](void* values, void*) {
      handle_->call("ncclBroadcast", running_, [&](ncclComm_t nccl) {
        return ncclBroadcast(values, values, bytes, ncclUint8, root, nccl, stream_.get());
      });
    });
  }

  void do_all_to_all(const void* input, void* output, std::size_t count, DType dtype) override {
    const std::size_t bytes = count * size_of(dtype);
    const Call call{fmt::format("all_to_all of {} {} a rank", count, kvloom::name_of(dtype)), input, output,
                    bytes * ranks(), bytes * ranks()};
    run(call, [&](const void* given, void* taken) { exchange(given, taken, bytes); });
  }

  Transfer do_isend(const void* data, std::size_t count, DType dtype, int to, int tag) override {
    const NcclMessage message{number_, shared_->world_rank, world_rank(to), tag, count, dtype};
    auto sending = shared_->messages.send(message, data);
    return Transfer(std::make_unique<NcclSend>(shared_, message, std::move(sending)));
  }

  Transfer do_irecv(void* data, std::size_t count, DType dtype, int from, int tag) override {
    const NcclMessage message{number_, world_rank(from), shared_->world_rank, tag, count, dtype};
    return Transfer(std::make_unique<NcclReceive>(shared_, shared_->messages.receive(message, data)));
  }

  std::unique_ptr<Communicator> do_split(int color, int key) override {
    const std::vector<std::int32_t> own_choice{color, key};
    std::vector<std::int32_t> choices(2 * ranks());
    do_all_gather(own_choice.data(), choices.data(), own_choice.size(), DType::kI32);

    std::vector<int> peers;  // of this color, in their new order
    for (int r = 0; r < size(); ++r) {
      if (choices[2 * static_cast<std::size_t>(r)] == color) peers.push_back(r);
    }
    const auto key_of = [&](int r) { return choices[2 * static_cast<std::size_t>(r) + 1]; };
    std::stable_sort(peers.begin(), peers.end(), [&](int a, int b) { return key_of(a) < key_of(b); });
    std::vector<int> members;
    for (const int peer : peers) members.push_back(world_rank(peer));
    ++splits_;
    make_room_for_nccl(stream_.device(), shared_->make_room);
    return std::make_unique<NcclCommunicator>(shared_, handle_->split(color, key), std::move(members),
                                              number_of_part(color));
  }

 private:
  // A collective as messages name it, and the caller's buffers; the same one twice when it works in place.
  struct Call {
    std::string what;
    const void* input;
    void* output;
    std::size_t input_bytes;
    std::size_t output_bytes;
  };

  std::size_t ranks() const { return members_.size(); }
  int world_rank(int rank) const { return members_[static_cast<std::size_t>(rank)]; }

  // Runs body(input, output), which gives the stream its work, after what the compute stream has been given.
  template <typename Body>
  Transfer start(const Call& call, const Body& body) {
    running_ = fmt::format("{} among ranks {} on rank {}", call.what, fmt::join(members_, ", "), shared_->world_rank);
    shared_->monitor.throw_if_failed(running_);
    if (call.input_bytes == 0 && call.output_bytes == 0) return {};
    enter_cuda_device(stream_.device());
    stream_.wait_for(shared_->compute);
    const bool in_place = call.output == call.input;
    auto output = std::make_unique<NcclBuffer>(*shared_, stream_, call.output, call.output_bytes);
    auto input = in_place ? nullptr : std::make_unique<NcclBuffer>(*shared_, stream_, call.input, call.input_bytes);
    NcclBuffer& given = in_place ? *output : *input;
    given.load();

    auto begun = std::make_shared<CudaEvent>(stream_.device());
    auto done = std::make_shared<CudaEvent>(stream_.device());
    begun->record(stream_);
    body(given.data(), output->data());
    output->begin_to_store();
    done->record(stream_);
    given.free_copy();
    output->free_copy();
    shared_->monitor.watch(running_, begun, done);
    return Transfer(
        std::make_unique<NcclCollective>(shared_, running_, std::move(done), std::move(input), std::move(output)));
  }

  template <typename Body>
  void run(const Call& call, const Body& body) {
    start(call, body).wait();
  }

  // taken [ranks * bytes]: part r = part rank() of what rank r gives.
  void exchange(const void* given, void* taken, std::size_t bytes) {
    handle_->call("ncclSend and ncclRecv", running_, [&](ncclComm_t nccl) {
      ncclGroupStart();
      ncclResult_t code = ncclSuccess;
      const auto keep_first = [&](ncclResult_t result) {
        if (code == ncclSuccess || code == ncclInProgress) code = result;
      };
      for (int peer = 0; peer < size(); ++peer) {
        const auto part = static_cast<std::size_t>(peer);
        keep_first(ncclSend(part_of(given, part, bytes), bytes, ncclUint8, peer, nccl, stream_.get()));
        keep_first(ncclRecv(part_of(taken, part, bytes), bytes, ncclUint8, peer, nccl, stream_.get()));
      }
      const ncclResult_t end = ncclGroupEnd();  // even after a failure: the thread's group would stay open
      return code == ncclSuccess || code == ncclInProgress ? end : code;
    });
  }

  void gather(const void* part, void* all, std::size_t bytes) {
    handle_->call("ncclAllGather", running_,
                  [&](ncclComm_t nccl) { return ncclAllGather(part, all, bytes, ncclUint8, nccl, stream_.get()); });
  }

  void sum(const void* parts, BFloat16* output, std::size_t count) {
    cuda::run({static_cast<const BFloat16*>(parts), output, size(), static_cast<std::int64_t>(count)}, stream_.get());
  }

  // Sums of bf16 are formed in f32 and rounded once: NCCL's own round at every rank. Each rank sums a part in order of
  // rank and gives it to all, which moves as many bytes as a ring does.
  void all_reduce_bf16(BFloat16* values, std::size_t count) {
    const std::size_t part = (count + ranks() - 1) / ranks();
    const std::size_t bytes = part * sizeof(BFloat16);
    const StreamBuffer padded(stream_, bytes * ranks(), shared_->make_room);
    const StreamBuffer parts(stream_, bytes * ranks(), shared_->make_room);
    const StreamBuffer own(stream_, bytes, shared_->make_room);
    stream_.fill_zero(padded.data(), bytes * ranks());
    stream_.copy(padded.data(), values, count * sizeof(BFloat16));
    exchange(padded.data(), parts.data(), bytes);
    sum(parts.data(), static_cast<BFloat16*>(own.data()), part);
    gather(own.data(), padded.data(), bytes);
    stream_.copy(values, padded.data(), count * sizeof(BFloat16));
  }

  void reduce_bf16(BFloat16* values, std::size_t count, int root) {
    const std::size_t bytes = count * sizeof(BFloat16);
    const StreamBuffer parts(stream_, rank_ == root ? bytes * ranks() : 0, shared_->make_room);
    handle_->call("ncclSend and ncclRecv", running_, [&](ncclComm_t nccl) {
      ncclGroupStart();
      ncclResult_t code = ncclSend(values, bytes, ncclUint8, root, nccl, stream_.get());
      for (int peer = 0; rank_ == root && peer < size(); ++peer) {
        const ncclResult_t result = ncclRecv(part_of(parts.data(), static_cast<std::size_t>(peer), bytes), bytes,
                                             ncclUint8, peer, nccl, stream_.get());
        if (code == ncclSuccess || code == ncclInProgress) code = result;
      }
      const ncclResult_t end = ncclGroupEnd();  // even after a failure: the thread's group would stay open
      return code == ncclSuccess || code == ncclInProgress ? end : code;
    });
    if (rank_ == root) sum(parts.data(), values, count);
  }

  // The same on all its ranks, without asking: they have split this one equally often. FNV-1a.
  std::uint64_t number_of_part(int color) const {
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (const std::uint64_t word : {number_, splits_, static_cast<std::uint64_t>(color)}) {
      for (int byte = 0; byte < 8; ++byte) hash = (hash ^ ((word >> (8 * byte)) & 0xff)) * 0x100000001b3u;
    }
    return hash;
  }

  std::shared_ptr<NcclRank> shared_;
  CudaStream stream_;
  std::shared_ptr<NcclHandle> handle_;
  std::vector<int> members_;
  std::uint64_t number_;
  std::uint64_t splits_ = 0;
  std::string running_;  // the collective under way, for messages
  int rank_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& ranks, const CudaStream& compute,
                                                     const NcclOptions& options) {
  const std::string id = broadcast_bytes(ranks, ranks.rank() == 0 ? make_nccl_id() : "", 0);
  return make_nccl_communicator(id, ranks.rank(), ranks.size(), compute, options);
}

std::string make_nccl_id() {
  ncclUniqueId id;
  check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
  return {id.internal, sizeof(id.internal)};
}

std::unique_ptr<Communicator> make_nccl_communicator(const std::string& id, int rank, int size,
                                                     const CudaStream& compute, const NcclOptions& options) {
  ncclUniqueId unique;
  if (id.size() != sizeof(unique.internal)) {
    fail("NCCL: an id of {} bytes; rank 0's make_nccl_id gives {}", id.size(), sizeof(unique.internal));
  }
  std::memcpy(unique.internal, id.data(), id.size());
  enter_cuda_device(compute.device());
  auto shared = std::make_shared<NcclRank>(compute, rank, options);
  make_room_for_nccl(compute.device(), options.make_room);
  auto handle = NcclHandle::open(shared->monitor, unique, rank, size);
  std::vector<int> members;
  for (int r = 0; r < size; ++r) members.push_back(r);
  auto world = std::make_unique<NcclCommunicator>(shared, std::move(handle), std::move(members), 1);
  shared->messages.set_peers(all_gather_bytes(*world, shared->messages.address()));
  return world;
}

}  // namespace kvloom
