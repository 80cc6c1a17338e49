#include "parallel/thread_ranks.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>
#include <span>
#include <thread>
#include <utility>

#include "kernels/error.h"
#include "parallel/reduce_in_order.h"
#include "parallel/thread_group.h"

namespace kvloom {
namespace {

// memcpy that takes null pointers for nothing.
void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

const std::byte* part_of(const void* data, std::size_t part, std::size_t bytes) {
  return static_cast<const std::byte*>(data) + part * bytes;
}

std::byte* part_of(void* data, std::size_t part, std::size_t bytes) {
  return static_cast<std::byte*>(data) + part * bytes;
}

class ThreadReceive final : public Transfer::State {
 public:
  ThreadReceive(std::shared_ptr<ThreadGroup> group, void* data, std::size_t count, DType dtype, int from, int to,
                int tag)
      : group_(std::move(group)), data_(data), count_(count), dtype_(dtype), from_(from), to_(to), tag_(tag) {
    place_ = group_->next_receive(from, to, tag);
  }

  void wait() override {
    const ThreadGroup::Message message = group_->take(from_, to_, tag_, place_);
    if (message.dtype != dtype_ || message.bytes.size() != count_ * size_of(dtype_)) {
      fail("irecv on rank {} from rank {}, tag {}: wants {} {}, the message has {} {}", to_, from_, tag_, count_,
           name_of(dtype_), message.bytes.size() / size_of(message.dtype), name_of(message.dtype));
    }
    copy_bytes(data_, message.bytes.data(), message.bytes.size());
  }

  bool done() override { return group_->settled(from_, to_, tag_, place_); }

 private:
  std::shared_ptr<ThreadGroup> group_;
  void* data_;
  std::size_t count_;
  DType dtype_;
  int from_;
  int to_;
  int tag_;
  std::uint64_t place_;
};

class StartedCollective final : public Transfer::State {
 public:
  StartedCollective(std::shared_ptr<ThreadGroup> group, int rank, const Contribution& contribution, PieceWork work)
      : group_(std::move(group)), rank_(rank), place_(group_->start(rank, contribution, std::move(work))) {}
  ~StartedCollective() override {
    if (!finished_) group_->give_up(rank_, place_);
  }

  void wait() override {
    finished_ = true;
    group_->finish(rank_, place_);
  }
  bool done() override { return group_->ready(place_); }

 private:
  std::shared_ptr<ThreadGroup> group_;
  int rank_;
  std::uint64_t place_;
  bool finished_ = false;
};

// Elements that one rank reduces at a time: few enough to be in its cache when they are copied to the others.
constexpr std::size_t kPieceElements = std::size_t{16} << 10;

// What a rank of a split offers to the others: the group that it made, or whose group it takes.
struct SplitOffer {
  std::shared_ptr<ThreadGroup> group;
  int first;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadGroup> group, int rank) : group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

  void barrier() override { run({.operation = "barrier"}, {}); }

 protected:
  Transfer do_iall_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    return start({"all_reduce", data, data, count, dtype, static_cast<int>(reduction)},
                 in_pieces(count, [=](const auto& all, std::size_t begin, std::size_t end) {
                   const Contribution& first = all.front();
                   reduce_in_order(inputs_of(all), begin, end, dtype, reduction, first.output);
                   const std::size_t width = size_of(dtype);
                   for (const Contribution& other : std::span(all).subspan(1)) {
                     copy_bytes(part_of(other.output, begin, width), part_of(first.input, begin, width),
                                (end - begin) * width);
                   }
                 }));
  }

  Transfer do_ireduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                              Reduction reduction) override {
    return start({"reduce_scatter", input, output, count, dtype, static_cast<int>(reduction)},
                 {ranks(), [=](const auto& all, std::size_t part) {
                    std::vector<const void*> parts = inputs_of(all);
                    for (const void*& of_rank : parts) of_rank = part_of(of_rank, part, count * size_of(dtype));
                    reduce_in_order(parts, 0, count, dtype, reduction, all[part].output);
                  }});
  }

  Transfer do_ireduce(void* data, std::size_t count, DType dtype, int root, Reduction reduction) override {
    const int detail = 2 * root + (reduction == Reduction::kSum ? 0 : 1);
    return start({"reduce", data, data, count, dtype, detail},
                 in_pieces(count, [=](const auto& all, std::size_t begin, std::size_t end) {
                   void* output = all[static_cast<std::size_t>(root)].output;
                   reduce_in_order(inputs_of(all), begin, end, dtype, reduction, output);
                 }));
  }

  void do_all_reduce(void* data, std::size_t count, DType dtype, Reduction reduction) override {
    do_iall_reduce(data, count, dtype, reduction).wait();
  }

  void do_reduce_scatter(const void* input, void* output, std::size_t count, DType dtype,
                         Reduction reduction) override {
    do_ireduce_scatter(input, output, count, dtype, reduction).wait();
  }

  void do_all_gather(const void* input, void* output, std::size_t count, DType dtype) override {
    const std::size_t bytes = count * size_of(dtype);
    run({"all_gather", input, output, count, dtype}, {ranks(), [=](const auto& all, std::size_t part) {
                                                        for (std::size_t r = 0; r < all.size(); ++r) {
                                                          copy_bytes(part_of(all[part].output, r, bytes), all[r].input,
                                                                     bytes);
                                                        }
                                                      }});
  }

  void do_broadcast(void* data, std::size_t count, DType dtype, int root) override {
    const std::size_t bytes = count * size_of(dtype);
    run({"broadcast", data, data, count, dtype, root}, {ranks(), [=](const auto& all, std::size_t part) {
                                                          const auto from = static_cast<std::size_t>(root);
                                                          if (part == from) return;
                                                          copy_bytes(all[part].output, all[from].input, bytes);
                                                        }});
  }

  void do_all_to_all(const void* input, void* output, std::size_t count, DType dtype) override {
    const std::size_t bytes = count * size_of(dtype);
    run({"all_to_all", input, output, count, dtype}, {ranks(), [=](const auto& all, std::size_t part) {
                                                        for (std::size_t r = 0; r < all.size(); ++r) {
                                                          copy_bytes(part_of(all[part].output, r, bytes),
                                                                     part_of(all[r].input, part, bytes), bytes);
                                                        }
                                                      }});
  }

  // The message is copied, so that the send is over at once.
  Transfer do_isend(const void* data, std::size_t count, DType dtype, int to, int tag) override {
    const auto* bytes = static_cast<const std::byte*>(data);
    group_->post(rank_, to, tag, {{bytes, bytes + count * size_of(dtype)}, dtype});
    return {};
  }

  Transfer do_irecv(void* data, std::size_t count, DType dtype, int from, int tag) override {
    return Transfer(std::make_unique<ThreadReceive>(group_, data, count, dtype, from, rank_, tag));
  }

  std::unique_ptr<Communicator> do_split(int color, int key) override {
    const std::vector<int> own_choice{color, key};
    std::vector<int> choices(2 * ranks());
    do_all_gather(own_choice.data(), choices.data(), own_choice.size(), DType::kI32);

    std::vector<int> peers;  // of this color, in their new order
    for (int r = 0; r < size(); ++r) {
      if (choices[2 * static_cast<std::size_t>(r)] == color) peers.push_back(r);
    }
    const auto key_of = [&](int r) { return choices[2 * static_cast<std::size_t>(r) + 1]; };
    std::stable_sort(peers.begin(), peers.end(), [&](int a, int b) { return key_of(a) < key_of(b); });

    // The first of each color makes the group; the others take it from there.
    SplitOffer offer{nullptr, peers.front()};
    if (peers.front() == rank_) offer.group = std::make_shared<ThreadGroup>(group_->world(), world_ranks(peers));
    std::shared_ptr<ThreadGroup> group;
    run({"split", &offer, &group}, {ranks(), [](const auto& all, std::size_t part) {
                                      const auto offer_of = [&](std::size_t r) -> const SplitOffer& {
                                        return *static_cast<const SplitOffer*>(all[r].input);
                                      };
                                      const auto first = static_cast<std::size_t>(offer_of(part).first);
                                      *static_cast<std::shared_ptr<ThreadGroup>*>(all[part].output) =
                                          offer_of(first).group;
                                    }});
    const auto place = std::find(peers.begin(), peers.end(), rank_) - peers.begin();
    return std::make_unique<ThreadCommunicator>(std::move(group), static_cast<int>(place));
  }

 private:
  // Calls work(all, begin, end) for ranges of [0, count).
  template <typename Work>
  static PieceWork in_pieces(std::size_t count, const Work& work) {
    return {(count + kPieceElements - 1) / kPieceElements,
            [=](const std::vector<Contribution>& all, std::size_t piece) {
              work(all, piece * kPieceElements, std::min(count, (piece + 1) * kPieceElements));
            }};
  }

  Transfer start(const Contribution& contribution, PieceWork work) {
    return Transfer(std::make_unique<StartedCollective>(group_, rank_, contribution, std::move(work)));
  }
  void run(const Contribution& contribution, PieceWork work) { start(contribution, std::move(work)).wait(); }

  std::size_t ranks() const { return static_cast<std::size_t>(size()); }

  std::vector<int> world_ranks(const std::vector<int>& peers) const {
    std::vector<int> members;
    for (const int peer : peers) members.push_back(group_->members()[static_cast<std::size_t>(peer)]);
    return members;
  }

  static std::vector<const void*> inputs_of(const std::vector<Contribution>& all) {
    std::vector<const void*> inputs;
    for (const Contribution& one : all) inputs.push_back(one.input);
    return inputs;
  }

  std::shared_ptr<ThreadGroup> group_;
  int rank_;
};

std::vector<int> first_ranks(int ranks) {
  std::vector<int> members(static_cast<std::size_t>(ranks));
  std::iota(members.begin(), members.end(), 0);
  return members;
}

}  // namespace

void run_thread_ranks(int ranks, const std::function<void(Communicator&)>& body) {
  if (ranks < 1) fail("{} thread ranks were asked for; at least one is needed", ranks);
  const auto world = std::make_shared<ThreadWorld>(ranks);
  const auto group = std::make_shared<ThreadGroup>(world, first_ranks(ranks));
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        ThreadCommunicator communicator(group, rank);
        body(communicator);
      } catch (...) {
        world->rank_failed(rank, std::current_exception());
      }
      world->rank_ended(rank);
    });
  }
  threads.clear();
  if (world->first_exception != nullptr) std::rethrow_exception(world->first_exception);
}

std::unique_ptr<Communicator> make_single_rank() {
  return std::make_unique<ThreadCommunicator>(
      std::make_shared<ThreadGroup>(std::make_shared<ThreadWorld>(1), first_ranks(1)), 0);
}

}  // namespace kvloom
