// What ranks say to one another: typed collectives and messages. Ranks are threads of one process (thread_ranks.h),
// processes under MPI (world.h), or a single one.
//
// Every collective is called by all ranks of the communicator, in the same order, with the same counts. Those that only
// start (their names begin with i, as MPI's do) are waited for in any order, and meet their like. A call that fails
// throws Error naming the operation, the peer and the cause. One thread of a rank calls at a time.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/dtype.h"

namespace kvloom {

template <typename T>
concept Transferable = std::same_as<T, float> || std::same_as<T, BFloat16> || std::same_as<T, double> ||
    std::same_as<T, std::int32_t> || std::same_as<T, std::int64_t> || std::same_as<T, std::uint8_t>;

// bf16 sums are formed in f32 and rounded once; integers wrap.
enum class Reduction : std::uint8_t { kSum, kMax };

enum class Collective : std::uint8_t { kAllReduce, kReduceScatter, kReduce, kAllGather, kBroadcast, kAllToAll };
inline constexpr std::size_t kCollectives = 6;

// The largest tag of a caller; MPI promises one more.
inline constexpr int kLargestTag = 32766;

// A message or a collective under way. Its buffers belong to it until `wait` returns; one that goes away unwaited is
// given up, and a collective with it for every rank.
class Transfer {
 public:
  class State {
   public:
    virtual ~State() = default;
    // Called once.
    virtual void wait() = 0;
    // True when `wait` would not wait for another rank: every one has done its part, or `wait` would throw at once.
    virtual bool done() = 0;
  };

  Transfer() = default;
  explicit Transfer(std::unique_ptr<State> state) : state_(std::move(state)) {}

  // Returns when the buffer may be used again (send) or holds the message (receive) or the result. Again: nothing
  // happens.
  void wait() {
    if (state_ == nullptr) return;
    const std::unique_ptr<State> state = std::move(state_);
    state->wait();
  }

  // True when `wait` would return, or throw, without waiting for another rank. Lets what is under way make progress.
  bool done() { return state_ == nullptr || state_->done(); }

 private:
  std::unique_ptr<State> state_;
};

void wait_all(std::span<Transfer> transfers);

class Communicator {
 public:
  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // data = the reduction over all ranks' data; every rank has the same bits.
  template <Transferable T>
  void all_reduce(std::span<T> data, Reduction reduction = Reduction::kSum) {
    count_bytes(Collective::kAllReduce, data.size_bytes());
    do_all_reduce(data.data(), data.size(), DTypeOf<T>::value, reduction);
  }

  // output [n] = part rank() of the reduction over all ranks' input [size() * n]. They may not overlap.
  template <Transferable T>
  void reduce_scatter(std::span<const std::type_identity_t<T>> input, std::span<T> output,
                      Reduction reduction = Reduction::kSum) {
    require_counts("reduce_scatter", input.size(), output.size() * width());
    count_bytes(Collective::kReduceScatter, input.size_bytes());
    do_reduce_scatter(input.data(), output.data(), output.size(), DTypeOf<T>::value, reduction);
  }

  // The same, started.
  template <Transferable T>
  [[nodiscard]] Transfer iall_reduce(std::span<T> data, Reduction reduction = Reduction::kSum) {
    count_bytes(Collective::kAllReduce, data.size_bytes());
    return do_iall_reduce(data.data(), data.size(), DTypeOf<T>::value, reduction);
  }
  template <Transferable T>
  [[nodiscard]] Transfer ireduce_scatter(std::span<const std::type_identity_t<T>> input, std::span<T> output,
                                         Reduction reduction = Reduction::kSum) {
    require_counts("ireduce_scatter", input.size(), output.size() * width());
    count_bytes(Collective::kReduceScatter, input.size_bytes());
    return do_ireduce_scatter(input.data(), output.data(), output.size(), DTypeOf<T>::value, reduction);
  }

  // Started: root's data = the reduction over all ranks' data; the others' stays as it is.
  template <Transferable T>
  [[nodiscard]] Transfer ireduce(std::span<T> data, int root, Reduction reduction = Reduction::kSum) {
    require_peer("ireduce", root);
    count_bytes(Collective::kReduce, data.size_bytes());
    return do_ireduce(data.data(), data.size(), DTypeOf<T>::value, root, reduction);
  }

  // output [size() * n] = every rank's input [n], in order of rank. They may not overlap.
  template <Transferable T>
  void all_gather(std::span<const std::type_identity_t<T>> input, std::span<T> output) {
    require_counts("all_gather", output.size(), input.size() * width());
    count_bytes(Collective::kAllGather, input.size_bytes());
    do_all_gather(input.data(), output.data(), input.size(), DTypeOf<T>::value);
  }

  // data = root's data.
  template <Transferable T>
  void broadcast(std::span<T> data, int root) {
    require_peer("broadcast", root);
    if (root == rank()) count_bytes(Collective::kBroadcast, data.size_bytes());
    do_broadcast(data.data(), data.size(), DTypeOf<T>::value, root);
  }

  // output [size() * n]: part r = part rank() of rank r's input [size() * n]. They may not overlap.
  template <Transferable T>
  void all_to_all(std::span<const std::type_identity_t<T>> input, std::span<T> output) {
    require_counts("all_to_all", input.size(), output.size());
    require_counts("all_to_all", output.size(), output.size() / width() * width());
    count_bytes(Collective::kAllToAll, input.size_bytes());
    do_all_to_all(input.data(), output.data(), output.size() / width(), DTypeOf<T>::value);
  }

  // Messages from one rank to another with the same tag (0..kLargestTag) arrive in order; those with different tags may
  // be received in any order. Both sides name the same count and type. `send` may wait for its `receive`.
  template <typename T>
  requires Transferable<std::remove_const_t<T>>
  void send(std::span<T> data, int to, int tag) { isend(data, to, tag).wait(); }
  template <Transferable T>
  void receive(std::span<T> data, int from, int tag) {
    irecv(data, from, tag).wait();
  }
  template <typename T>
  requires Transferable<std::remove_const_t<T>>
  [[nodiscard]] Transfer isend(std::span<T> data, int to, int tag) {
    require_message("isend", to, tag);
    sent_bytes_[tag] += data.size_bytes();
    return do_isend(data.data(), data.size(), DTypeOf<std::remove_const_t<T>>::value, to, tag);
  }
  template <Transferable T>
  [[nodiscard]] Transfer irecv(std::span<T> data, int from, int tag) {
    require_message("irecv", from, tag);
    return do_irecv(data.data(), data.size(), DTypeOf<T>::value, from, tag);
  }

  // Returns when every rank has called it.
  virtual void barrier() = 0;

  // Bytes of this rank's messages with this tag so far, to whomever: the payload, whatever a transport makes of it.
  std::uint64_t sent_bytes(int tag) const;
  // Bytes that this rank gave to calls of one collective so far: the whole input; of a broadcast, the root's data.
  // What `split` and `barrier` exchange does not count, nor what happens in communicators split from this one.
  std::uint64_t given_bytes(Collective collective) const;

  // Ranks with the same color (0 or more) make one communicator, ordered by key, then by rank. It must not outlive this
  // one.
  std::unique_ptr<Communicator> split(int color, int key);

 protected:
  virtual void do_all_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) = 0;
  virtual void do_reduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                                 Reduction reduction) = 0;
  virtual Transfer do_iall_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) = 0;
  virtual Transfer do_ireduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                                      Reduction reduction) = 0;
  virtual Transfer do_ireduce(void* data, std::size_t count, DType dtype, int root, Reduction reduction) = 0;
  virtual void do_all_gather(const void* input, void* output, std::size_t count, DType dtype) = 0;
  virtual void do_broadcast(void* data, std::size_t count, DType dtype, int root) = 0;
  virtual void do_all_to_all(const void* input, void* output, std::size_t count, DType dtype) = 0;
  virtual Transfer do_isend(const void* data, std::size_t count, DType dtype, int to, int tag) = 0;
  virtual Transfer do_irecv(void* data, std::size_t count, DType dtype, int from, int tag) = 0;
  virtual std::unique_ptr<Communicator> do_split(int color, int key) = 0;

 private:
  void count_bytes(Collective collective, std::size_t bytes) {
    given_bytes_[static_cast<std::size_t>(collective)] += bytes;
  }
  std::size_t width() const { return static_cast<std::size_t>(size()); }
  void require_peer(const char* operation, int peer) const;
  void require_message(const char* operation, int peer, int tag) const;
  void require_counts(const char* operation, std::size_t given, std::size_t wanted) const;

  std::map<int, std::uint64_t> sent_bytes_;  // by tag
  std::array<std::uint64_t, kCollectives> given_bytes_{};
};

// Every rank's bytes, of any lengths, in order of rank.
std::vector<std::string> all_gather_bytes(Communicator& communicator, const std::string& bytes);

// The root's bytes. What other ranks give is not looked at.
std::string broadcast_bytes(Communicator& communicator, const std::string& bytes, int root);

}  // namespace kvloom
