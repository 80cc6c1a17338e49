#include "parallel/mpi_communicator.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <exception>
#include <utility>

#include "kernels/error.h"

namespace kvloom {
namespace {

// Pieces of an all_to_all too large for one call. Callers' tags end below it.
constexpr int kAllToAllTag = kLargestTag + 1;

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return MPI_FLOAT;
    case DType::kBF16:
      return MPI_UINT16_T;  // moved as bits; reductions widen first
    case DType::kF64:
      return MPI_DOUBLE;
    case DType::kI32:
      return MPI_INT32_T;
    case DType::kI64:
      return MPI_INT64_T;
    case DType::kU8:
      return MPI_UINT8_T;
    default:
      fail("MPI: ranks do not exchange {}", name_of(dtype));
  }
}

MPI_Op mpi_operation(Reduction reduction) { return reduction == Reduction::kSum ? MPI_SUM : MPI_MAX; }

const std::byte* at(const void* data, std::size_t element, DType dtype) {
  return static_cast<const std::byte*>(data) + element * size_of(dtype);
}

std::byte* at(void* data, std::size_t element, DType dtype) {
  return static_cast<std::byte*>(data) + element * size_of(dtype);
}

// Calls piece(begin, length) until [0, count) is covered.
template <typename Piece>
void in_pieces(std::size_t count, std::size_t largest, const Piece& piece) {
  for (std::size_t begin = 0; begin < count; begin += largest) {
    piece(begin, static_cast<int>(std::min(largest, count - begin)));
  }
}

std::vector<float> widened(const void* data, std::size_t count) {
  const auto* values = static_cast<const BFloat16*>(data);
  std::vector<float> wide(count);
  for (std::size_t i = 0; i < count; ++i) wide[i] = static_cast<float>(values[i]);
  return wide;
}

void narrow(std::span<const float> wide, void* data) {
  auto* values = static_cast<BFloat16*>(data);
  for (std::size_t i = 0; i < wide.size(); ++i) values[i] = BFloat16(wide[i]);
}

// A message in one or more pieces, which MPI keeps in order.
class MpiTransfer final : public Transfer::State {
 public:
  enum class Direction : std::uint8_t { kSend, kReceive };

  MpiTransfer(Direction direction, int rank, int peer, MPI_Datatype type)
      : direction_(direction), rank_(rank), peer_(peer), type_(type) {}

  ~MpiTransfer() override {
    for (Piece& piece : pieces_) give_up(piece);
  }

  // The request of one more piece, for MPI_Isend or MPI_Irecv to fill.
  MPI_Request* add(int count) { return &pieces_.emplace_back(Piece{MPI_REQUEST_NULL, count}).request; }

  void wait() override {
    for (Piece& piece : pieces_) {
      MPI_Status status;
      check_mpi(MPI_Wait(&piece.request, &status), operation(), rank_, peer_);
      if (direction_ == Direction::kReceive) check_length(piece, status);
    }
  }

  // Not MPI_Test: that would take the status which `wait` looks at.
  bool done() override {
    for (const Piece& piece : pieces_) {
      int ended = 0;
      MPI_Status status;
      check_mpi(MPI_Request_get_status(piece.request, &ended, &status), operation(), rank_, peer_);
      if (ended == 0) return false;
    }
    return true;
  }

 private:
  struct Piece {
    MPI_Request request;
    int count;
  };

  const char* operation() const { return direction_ == Direction::kSend ? "isend" : "irecv"; }

  void check_length(const Piece& piece, MPI_Status& status) const {
    int received = 0;
    check_mpi(MPI_Get_count(&status, type_, &received), operation(), rank_, peer_);
    if (received == piece.count) return;
    fail("irecv on rank {} from rank {}: wants {} elements, the message has {}", rank_, peer_, piece.count, received);
  }

  // A receive can be taken back; a send has to end before its buffer goes, unless the job is going down anyway.
  // A message that has begun to come can no longer be cancelled. On the way down its sender may be what has failed, and
  // this rank has yet to say so: it does not wait for long.
  static void wait_for_end_of_receive(Piece& piece) {
    if (std::uncaught_exceptions() == 0) {
      MPI_Wait(&piece.request, MPI_STATUS_IGNORE);
      return;
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    int ended = 0;
    while (ended == 0 && std::chrono::steady_clock::now() < end) {
      if (MPI_Test(&piece.request, &ended, MPI_STATUS_IGNORE) != MPI_SUCCESS) return;
    }
    if (ended == 0) MPI_Request_free(&piece.request);
  }

  void give_up(Piece& piece) const {
    if (piece.request == MPI_REQUEST_NULL) return;
    if (direction_ == Direction::kReceive) {
      MPI_Cancel(&piece.request);
      wait_for_end_of_receive(piece);
    } else if (std::uncaught_exceptions() > 0) {
      MPI_Request_free(&piece.request);
    } else {
      MPI_Wait(&piece.request, MPI_STATUS_IGNORE);
    }
  }

  Direction direction_;
  int rank_;
  int peer_;
  MPI_Datatype type_;
  std::vector<Piece> pieces_;
};

}  // namespace

// A collective in one or more MPI calls, which all ranks make in the same order. What was widened is narrowed at its
// end.
class MpiCollective final : public Transfer::State {
 public:
  MpiCollective(const char* operation, int rank, std::shared_ptr<UnfinishedBuffers> unfinished)
      : operation_(operation), rank_(rank), unfinished_(std::move(unfinished)) {}

  // MPI offers no way to take part in half a collective: unless the job is going down anyway, it is seen to its end.
  // Otherwise MPI goes on writing into what was widened, for as long as this rank calls it.
  ~MpiCollective() override {
    if (std::uncaught_exceptions() > 0) {
      unfinished_->splice(unfinished_->end(), wide_);
      return;
    }
    for (MPI_Request& request : requests_) MPI_Wait(&request, MPI_STATUS_IGNORE);
  }

  MPI_Request* add() { return &requests_.emplace_back(MPI_REQUEST_NULL); }
  // Buffers of f32 in place of the caller's, of `count` elements.
  std::vector<float>& widen(const void* data, std::size_t count) { return wide_.emplace_back(widened(data, count)); }
  std::vector<float>& wide_result(std::size_t count) { return wide_.emplace_back(count); }
  // Where the last of them goes in the end.
  void narrow_into(void* data) { narrow_ = data; }

  void wait() override {
    for (MPI_Request& request : requests_) check_mpi(MPI_Wait(&request, MPI_STATUS_IGNORE), operation_, rank_);
    if (narrow_ != nullptr) narrow(wide_.back(), narrow_);
  }

  bool done() override {
    for (MPI_Request& request : requests_) {
      int ended = 0;
      check_mpi(MPI_Test(&request, &ended, MPI_STATUS_IGNORE), operation_, rank_);
      if (ended == 0) return false;
    }
    return true;
  }

 private:
  const char* operation_;
  int rank_;
  std::shared_ptr<UnfinishedBuffers> unfinished_;
  std::list<MPI_Request> requests_;
  std::list<std::vector<float>> wide_;
  void* narrow_ = nullptr;
};

namespace {

std::string reason(int code) {
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) return fmt::format("MPI error {}", code);
  return {text.data(), static_cast<std::size_t>(length)};
}

}  // namespace

void check_mpi(int code, const char* operation, int rank, int peer) {
  if (code == MPI_SUCCESS) return;
  if (peer < 0) fail("{} on rank {}: {}", operation, rank, reason(code));
  fail("{} on rank {} with rank {}: {}", operation, rank, peer, reason(code));
}

MpiCommunicator::MpiCommunicator(MPI_Comm communicator, std::int64_t largest_count,
                                 std::shared_ptr<UnfinishedBuffers> unfinished)
    : communicator_(communicator),
      largest_count_(static_cast<std::size_t>(largest_count)),
      unfinished_(std::move(unfinished)) {
  check(MPI_Comm_rank(communicator_, &rank_), "start");
  check(MPI_Comm_size(communicator_, &size_), "start");
}

MpiCommunicator::~MpiCommunicator() {
  // Freeing is collective: not while this rank alone is on its way down.
  if (std::uncaught_exceptions() == 0) MPI_Comm_free(&communicator_);
}

void MpiCommunicator::barrier() { check(MPI_Barrier(communicator_), "barrier"); }

void MpiCommunicator::do_all_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) {
  if (dtype == DType::kBF16) {
    std::vector<float> wide = widened(data, count);
    do_all_reduce(wide.data(), count, DType::kF32, reduction);
    return narrow(wide, data);
  }
  in_pieces(count, largest_count_, [&](std::size_t begin, int length) {
    check(MPI_Allreduce(MPI_IN_PLACE, at(data, begin, dtype), length, mpi_type(dtype), mpi_operation(reduction),
                        communicator_),
          "all_reduce");
  });
}

void MpiCommunicator::do_reduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                                        Reduction reduction) {
  const auto ranks = static_cast<std::size_t>(size_);
  if (dtype == DType::kBF16) {
    const std::vector<float> wide = widened(input, count * ranks);
    std::vector<float> sums(count);
    do_reduce_scatter(wide.data(), sums.data(), count, DType::kF32, reduction);
    return narrow(sums, output);
  }
  if (in_one_call(count * ranks)) {
    return check(MPI_Reduce_scatter_block(input, output, static_cast<int>(count), mpi_type(dtype),
                                          mpi_operation(reduction), communicator_),
                 "reduce_scatter");
  }
  for (int root = 0; root < size_; ++root) {
    in_pieces(count, largest_count_, [&](std::size_t begin, int length) {
      check(MPI_Reduce(at(input, static_cast<std::size_t>(root) * count + begin, dtype), at(output, begin, dtype),
                       length, mpi_type(dtype), mpi_operation(reduction), root, communicator_),
            "reduce_scatter", root);
    });
  }
}

Transfer MpiCommunicator::do_iall_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) {
  auto state = std::make_unique<MpiCollective>("iall_reduce", rank_, unfinished_);
  if (dtype == DType::kBF16) {
    state->narrow_into(data);
    data = state->widen(data, count).data();
    dtype = DType::kF32;
  }
  in_pieces(count, largest_count_, [&](std::size_t begin, int length) {
    check(MPI_Iallreduce(MPI_IN_PLACE, at(data, begin, dtype), length, mpi_type(dtype), mpi_operation(reduction),
                         communicator_, state->add()),
          "iall_reduce");
  });
  return Transfer(std::move(state));
}

Transfer MpiCommunicator::do_ireduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                                             Reduction reduction) {
  const auto ranks = static_cast<std::size_t>(size_);
  auto state = std::make_unique<MpiCollective>("ireduce_scatter", rank_, unfinished_);
  if (dtype == DType::kBF16) {
    state->narrow_into(output);
    input = state->widen(input, count * ranks).data();
    output = state->wide_result(count).data();
    dtype = DType::kF32;
  }
  if (in_one_call(count * ranks)) {
    check(MPI_Ireduce_scatter_block(input, output, static_cast<int>(count), mpi_type(dtype), mpi_operation(reduction),
                                    communicator_, state->add()),
          "ireduce_scatter");
    return Transfer(std::move(state));
  }
  for (int root = 0; root < size_; ++root) {
    start_reduce(*state, at(input, static_cast<std::size_t>(root) * count, dtype), output, count, dtype, reduction,
                 root);
  }
  return Transfer(std::move(state));
}

Transfer MpiCommunicator::do_ireduce(void* data, std::size_t count, DType dtype, int root, Reduction reduction) {
  auto state = std::make_unique<MpiCollective>("ireduce", rank_, unfinished_);
  if (dtype == DType::kBF16) {
    if (rank_ == root) state->narrow_into(data);
    data = state->widen(data, count).data();
    dtype = DType::kF32;
  }
  start_reduce(*state, rank_ == root ? MPI_IN_PLACE : data, data, count, dtype, reduction, root);
  return Transfer(std::move(state));
}

void MpiCommunicator::start_reduce(MpiCollective& state, const void* input, void* output, std::size_t count,
                                   DType dtype, Reduction reduction, int root) {
  in_pieces(count, largest_count_, [&](std::size_t begin, int length) {
    const void* from = input == MPI_IN_PLACE ? input : at(input, begin, dtype);
    check(MPI_Ireduce(from, at(output, begin, dtype), length, mpi_type(dtype), mpi_operation(reduction), root,
                      communicator_, state.add()),
          "ireduce", root);
  });
}

void MpiCommunicator::do_all_gather(const void* input, void* output, std::size_t count, DType dtype) {
  if (in_one_call(count * static_cast<std::size_t>(size_))) {
    const int length = static_cast<int>(count);
    return check(MPI_Allgather(input, length, mpi_type(dtype), output, length, mpi_type(dtype), communicator_),
                 "all_gather");
  }
  std::memcpy(at(output, static_cast<std::size_t>(rank_) * count, dtype), input, count * size_of(dtype));
  for (int root = 0; root < size_; ++root) {
    do_broadcast(at(output, static_cast<std::size_t>(root) * count, dtype), count, dtype, root);
  }
}

void MpiCommunicator::do_broadcast(void* data, std::size_t count, DType dtype, int root) {
  in_pieces(count, largest_count_, [&](std::size_t begin, int length) {
    check(MPI_Bcast(at(data, begin, dtype), length, mpi_type(dtype), root, communicator_), "broadcast", root);
  });
}

void MpiCommunicator::do_all_to_all(const void* input, void* output, std::size_t count, DType dtype) {
  if (in_one_call(count * static_cast<std::size_t>(size_))) {
    const int length = static_cast<int>(count);
    return check(MPI_Alltoall(input, length, mpi_type(dtype), output, length, mpi_type(dtype), communicator_),
                 "all_to_all");
  }
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < size_; ++peer) {
    const std::size_t part = static_cast<std::size_t>(peer) * count;
    transfers.push_back(do_irecv(at(output, part, dtype), count, dtype, peer, kAllToAllTag));
    transfers.push_back(do_isend(at(input, part, dtype), count, dtype, peer, kAllToAllTag));
  }
  wait_all(transfers);
}

Transfer MpiCommunicator::do_isend(const void* data, std::size_t count, DType dtype, int to, int tag) {
  auto state = std::make_unique<MpiTransfer>(MpiTransfer::Direction::kSend, rank_, to, mpi_type(dtype));
  const auto piece = [&](std::size_t begin, int length) {
    check(MPI_Isend(at(data, begin, dtype), length, mpi_type(dtype), to, tag, communicator_, state->add(length)),
          "isend", to);
  };
  if (count == 0) piece(0, 0);
  in_pieces(count, largest_count_, piece);
  return Transfer(std::move(state));
}

Transfer MpiCommunicator::do_irecv(void* data, std::size_t count, DType dtype, int from, int tag) {
  auto state = std::make_unique<MpiTransfer>(MpiTransfer::Direction::kReceive, rank_, from, mpi_type(dtype));
  const auto piece = [&](std::size_t begin, int length) {
    check(MPI_Irecv(at(data, begin, dtype), length, mpi_type(dtype), from, tag, communicator_, state->add(length)),
          "irecv", from);
  };
  if (count == 0) piece(0, 0);
  in_pieces(count, largest_count_, piece);
  return Transfer(std::move(state));
}

std::unique_ptr<Communicator> MpiCommunicator::do_split(int color, int key) {
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(communicator_, color, key, &part), "split");
  check(MPI_Comm_set_errhandler(part, MPI_ERRORS_RETURN), "split");
  return std::make_unique<MpiCommunicator>(part, static_cast<std::int64_t>(largest_count_), unfinished_);
}

}  // namespace kvloom
