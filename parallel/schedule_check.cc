// The proof that a schedule is right, by rules of its own: it shares nothing with the code that makes schedules.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "kernels/error.h"
#include "parallel/schedule.h"

namespace kvloom {
namespace {

constexpr std::size_t at(int index) { return static_cast<std::size_t>(index); }

class Checker {
 public:
  Checker(const ChunkChain& chain, int micro_batches, SchedulePolicy policy, const Schedule& schedule)
      : chain_(chain), micro_batches_(micro_batches), policy_(policy), schedule_(schedule) {}

  void check() {
    if (schedule_.ranks.size() != at(chain_.ranks)) {
      fail("schedule: lists for {} ranks; the pipeline has {}", schedule_.ranks.size(), chain_.ranks);
    }
    for (int rank = 0; rank < chain_.ranks; ++rank) check_instructions(rank);
    check_all_there();
    check_pairs();
    for (int rank = 0; rank < chain_.ranks; ++rank) check_order_within(rank);
    play();
  }

 private:
  // Where each thing that must happen once stands in its rank's list.
  static constexpr std::size_t kNowhere = static_cast<std::size_t>(-1);
  struct Places {
    std::vector<std::size_t> forward;  // by chunk and micro-batch
    std::vector<std::size_t> backward;
    std::array<std::vector<std::size_t>, 2> sent;  // hidden states and K/V, gradients: by edge and micro-batch
    std::array<std::vector<std::size_t>, 2> received;
  };

  [[noreturn]] void refuse(int rank, const Instruction& instruction, const std::string& why) const {
    fail("schedule: rank {}, {}: {}", rank, describe(chain_, instruction), why);
  }

  bool trains() const { return policy_ != SchedulePolicy::kForwardOnly; }

  std::size_t key(int index, int micro_batch) const { return at(index) * at(micro_batches_) + at(micro_batch); }

  static bool computes(const Instruction& instruction) {
    return instruction.action == Action::kForward || instruction.action == Action::kBackward;
  }

  std::vector<std::size_t>& places_of(const Instruction& instruction) {
    switch (instruction.action) {
      case Action::kForward:
        return places_.forward;
      case Action::kBackward:
        return places_.backward;
      case Action::kSend:
        return places_.sent[instruction.gradient];
      case Action::kReceive:
        break;
    }
    return places_.received[instruction.gradient];
  }

  int owner_of(const Instruction& instruction) const {
    if (computes(instruction)) return chain_.chunks[at(instruction.index)].rank;
    const Edge& edge = chain_.edges[at(instruction.index)];
    return (instruction.action == Action::kSend) != instruction.gradient ? edge.from_rank : edge.to_rank;
  }

  bool has_backward(int chunk) const { return trains() && chain_.chunks[at(chunk)].keeps_gradient; }
  bool returns(int edge) const { return trains() && chain_.edges[at(edge)].returns_gradient; }

  // Each instruction alone: it exists, belongs to its rank and comes once.
  void check_instructions(int rank) {
    const std::size_t chunks = chain_.chunks.size() * at(micro_batches_);
    const std::size_t edges = chain_.edges.size() * at(micro_batches_);
    if (places_.forward.empty()) {
      places_ = {std::vector(chunks, kNowhere), std::vector(chunks, kNowhere), {}, {}};
      for (auto* lists : {&places_.sent, &places_.received}) lists->fill(std::vector(edges, kNowhere));
    }
    const std::vector<Instruction>& list = schedule_.ranks[at(rank)];
    for (std::size_t i = 0; i < list.size(); ++i) {
      const Instruction& instruction = list[i];
      const std::size_t count = computes(instruction) ? chain_.chunks.size() : chain_.edges.size();
      if (instruction.index < 0 || at(instruction.index) >= count) refuse(rank, instruction, "there is no such thing");
      if (instruction.micro_batch < 0 || instruction.micro_batch >= micro_batches_) {
        refuse(rank, instruction, fmt::format("the step has {} micro-batches", micro_batches_));
      }
      if (owner_of(instruction) != rank) {
        refuse(rank, instruction, fmt::format("that is rank {}'s", owner_of(instruction)));
      }
      if (instruction.action == Action::kBackward && !has_backward(instruction.index)) {
        refuse(rank, instruction, "it keeps no gradient");
      }
      if (!computes(instruction) && instruction.gradient && !returns(instruction.index)) {
        refuse(rank, instruction, "no gradient comes back along this edge");
      }
      std::size_t& place = places_of(instruction)[key(instruction.index, instruction.micro_batch)];
      if (place != kNowhere) refuse(rank, instruction, "for the second time");
      place = i;
    }
  }

  void require(const Instruction& instruction) {
    if (places_of(instruction)[key(instruction.index, instruction.micro_batch)] == kNowhere) {
      refuse(owner_of(instruction), instruction, "it is missing");
    }
  }

  void check_all_there() {
    for (int micro_batch = 0; micro_batch < micro_batches_; ++micro_batch) {
      for (int chunk = 0; chunk < static_cast<int>(chain_.chunks.size()); ++chunk) {
        require({Action::kForward, micro_batch, chunk});
        if (has_backward(chunk)) require({Action::kBackward, micro_batch, chunk});
      }
      for (int edge = 0; edge < static_cast<int>(chain_.edges.size()); ++edge) {
        for (const Action action : {Action::kSend, Action::kReceive}) {
          require({action, micro_batch, edge, false});
          if (returns(edge)) require({action, micro_batch, edge, true});
        }
      }
    }
  }

  using Messages = std::vector<const Instruction*>;

  std::size_t pair(int from, int to) const { return at(from * chain_.ranks + to); }

  // By ordered pair of ranks: what the one sends, or what the other receives, in order.
  std::vector<Messages> streams_of(Action action) const {
    std::vector<Messages> streams(at(chain_.ranks * chain_.ranks));
    for (const auto& list : schedule_.ranks) {
      for (const Instruction& instruction : list) {
        if (instruction.action != action) continue;
        const Edge& edge = chain_.edges[at(instruction.index)];
        streams[instruction.gradient ? pair(edge.to_rank, edge.from_rank) : pair(edge.from_rank, edge.to_rank)]
            .push_back(&instruction);
      }
    }
    return streams;
  }

  // Every message is there on both sides by now; the order may differ.
  void check_pairs() {
    const std::vector<Messages> sent = streams_of(Action::kSend);
    const std::vector<Messages> received = streams_of(Action::kReceive);
    for (std::size_t p = 0; p < sent.size(); ++p) {
      for (std::size_t i = 0; i < sent[p].size(); ++i) {
        const Instruction& send = *sent[p][i];
        const Instruction& receive = *received[p][i];
        if (send.micro_batch == receive.micro_batch && send.index == receive.index &&
            send.gradient == receive.gradient) {
          continue;
        }
        refuse(owner_of(receive), receive,
               fmt::format("message {} that rank {} sends it is the {}", i, owner_of(send), describe(chain_, send)));
      }
    }
  }

  // Demands that `first` stands before `then` in the list of the rank of both.
  void before(const Instruction& first, const Instruction& then) {
    const std::size_t place_first = places_of(first)[key(first.index, first.micro_batch)];
    const std::size_t place_then = places_of(then)[key(then.index, then.micro_batch)];
    if (place_first < place_then) return;
    refuse(owner_of(then), then, fmt::format("it comes before the {}", describe(chain_, first)));
  }

  void check_order_within(int rank) {
    std::vector<int> own;
    for (int chunk = 0; chunk < static_cast<int>(chain_.chunks.size()); ++chunk) {
      if (chain_.chunks[at(chunk)].rank == rank) own.push_back(chunk);
    }
    for (int micro_batch = 0; micro_batch < micro_batches_; ++micro_batch) {
      int earlier = -1;
      int earlier_with_gradient = -1;
      for (const int chunk : own) {
        check_around(micro_batch, chunk);
        if (earlier >= 0) before({Action::kForward, micro_batch, earlier}, {Action::kForward, micro_batch, chunk});
        earlier = chunk;
        if (!has_backward(chunk)) continue;
        before({Action::kForward, micro_batch, own.back()}, {Action::kBackward, micro_batch, chunk});
        if (earlier_with_gradient >= 0) {
          before({Action::kBackward, micro_batch, chunk}, {Action::kBackward, micro_batch, earlier_with_gradient});
        }
        earlier_with_gradient = chunk;
      }
    }
  }

  // Receives before a chunk's use of them, sends after it.
  void check_around(int micro_batch, int chunk) {
    const Instruction forward{Action::kForward, micro_batch, chunk};
    for (const int edge : chain_.needs[at(chunk)]) before({Action::kReceive, micro_batch, edge}, forward);
    for (const int edge : chain_.gives[at(chunk)]) before(forward, {Action::kSend, micro_batch, edge});
    if (!has_backward(chunk)) return;
    const Instruction backward{Action::kBackward, micro_batch, chunk};
    for (const int edge : chain_.backward_needs[at(chunk)]) {
      before({Action::kReceive, micro_batch, edge, true}, backward);
    }
    for (const int edge : chain_.backward_gives[at(chunk)]) before(backward, {Action::kSend, micro_batch, edge, true});
  }

  // Ranks run their lists; a compute waits for its messages, nothing else waits.
  void play() {
    std::vector<std::size_t> next(schedule_.ranks.size(), 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t rank = 0; rank < next.size(); ++rank) {
        while (next[rank] < schedule_.ranks[rank].size() && !missing_message(next, schedule_.ranks[rank][next[rank]])) {
          ++next[rank];
          moved = true;
        }
      }
    }
    for (std::size_t rank = 0; rank < next.size(); ++rank) {
      if (next[rank] == schedule_.ranks[rank].size()) continue;
      const Instruction& instruction = schedule_.ranks[rank][next[rank]];
      const Instruction awaited = *missing_message(next, instruction);
      refuse(static_cast<int>(rank), instruction,
             fmt::format("dead-lock: it waits for the {}, which rank {} has not reached", describe(chain_, awaited),
                         owner_of(awaited)));
    }
  }

  // The first send that `instruction` waits for, if any, when ranks have come to `next`.
  std::optional<Instruction> missing_message(const std::vector<std::size_t>& next, const Instruction& instruction) {
    if (!computes(instruction)) return std::nullopt;
    const bool gradient = instruction.action == Action::kBackward;
    for (const int edge : (gradient ? chain_.backward_needs : chain_.needs)[at(instruction.index)]) {
      const Instruction send{Action::kSend, instruction.micro_batch, edge, gradient};
      if (places_of(send)[key(edge, instruction.micro_batch)] >= next[at(owner_of(send))]) return send;
    }
    return std::nullopt;
  }

  const ChunkChain& chain_;
  const int micro_batches_;
  const SchedulePolicy policy_;
  const Schedule& schedule_;
  Places places_;
};

}  // namespace

void check_schedule(const ChunkChain& chain, int micro_batches, SchedulePolicy policy, const Schedule& schedule) {
  if (micro_batches < 1) reject_input("schedule: {} micro-batches; at least one is needed", micro_batches);
  Checker(chain, micro_batches, policy, schedule).check();
}

}  // namespace kvloom
