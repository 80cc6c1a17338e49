#include <algorithm>

#include "kernels/error.h"
#include "parallel/schedule.h"

namespace kvloom {
namespace {

constexpr std::size_t at(int index) { return static_cast<std::size_t>(index); }

int count_micro_batches(const Schedule& schedule) {
  int most = -1;
  for (const auto& list : schedule.ranks) {
    for (const Instruction& instruction : list) most = std::max(most, instruction.micro_batch);
  }
  return most + 1;
}

// A message crosses once it is sent, its receive is posted, and the pair's earlier messages have crossed.
struct Crossing {
  double sent = -1;
  double posted = -1;
  double arrives = -1;
};

class Player {
 public:
  Player(const ChunkChain& chain, const Schedule& schedule, const ScheduleCosts& costs)
      : chain_(chain), schedule_(schedule), costs_(costs), micro_batches_(count_micro_batches(schedule)) {}

  ScheduleTimes play() {
    const std::size_t ranks = schedule_.ranks.size();
    times_.busy.assign(ranks, 0);
    times_.spans.resize(ranks);
    for (auto& messages : crossings_) messages.resize(chain_.edges.size() * at(micro_batches_));
    streams_.resize(ranks * ranks);
    next_.assign(ranks, 0);
    clock_.assign(ranks, 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t rank = 0; rank < ranks; ++rank) {
        while (next_[rank] < schedule_.ranks[rank].size() && run(rank, schedule_.ranks[rank][next_[rank]])) {
          ++next_[rank];
          moved = true;
        }
      }
    }
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      if (next_[rank] < schedule_.ranks[rank].size()) {
        fail("schedule: rank {} never gets past the {}", rank, describe(chain_, schedule_.ranks[rank][next_[rank]]));
      }
    }
    times_.makespan = ranks > 0 ? std::ranges::max(clock_) : 0;
    count_kept();
    return std::move(times_);
  }

 private:
  // An ordered pair's messages in the order of the sends; those before `crossed` have their times.
  struct Stream {
    std::vector<Instruction> sends;
    std::size_t crossed = 0;
    double free = 0;
  };

  Crossing& crossing(const Instruction& message) {
    return crossings_[message.gradient][at(message.index) * at(micro_batches_) + at(message.micro_batch)];
  }

  Stream& stream_of(const Instruction& message) {
    const Edge& edge = chain_.edges[at(message.index)];
    const int from = message.gradient ? edge.to_rank : edge.from_rank;
    const int to = message.gradient ? edge.from_rank : edge.to_rank;
    return streams_[at(from) * schedule_.ranks.size() + at(to)];
  }

  void cross(Stream& stream) {
    while (stream.crossed < stream.sends.size()) {
      const Instruction& send = stream.sends[stream.crossed];
      Crossing& message = crossing(send);
      if (message.posted < 0) return;
      message.arrives = std::max({message.sent, message.posted, stream.free}) +
                        (send.gradient ? costs_.gradient_crossing : costs_.crossing)[at(send.index)];
      stream.free = message.arrives;
      ++stream.crossed;
    }
  }

  // False: it waits for a message whose time is not known yet.
  bool run(std::size_t rank, const Instruction& instruction) {
    if (instruction.action == Action::kSend) {
      crossing(instruction).sent = clock_[rank];
      stream_of(instruction).sends.push_back(instruction);
      cross(stream_of(instruction));
      return true;
    }
    if (instruction.action == Action::kReceive) {
      crossing(instruction).posted = clock_[rank];
      cross(stream_of(instruction));
      return true;
    }
    return compute(rank, instruction);
  }

  bool compute(std::size_t rank, const Instruction& instruction) {
    const bool backward = instruction.action == Action::kBackward;
    double begin = clock_[rank];
    for (const int edge : (backward ? chain_.backward_needs : chain_.needs)[at(instruction.index)]) {
      const double arrives = crossing({Action::kReceive, instruction.micro_batch, edge, backward}).arrives;
      if (arrives < 0) return false;
      begin = std::max(begin, arrives);
    }
    const double takes = (backward ? costs_.backward : costs_.forward)[at(instruction.index)];
    clock_[rank] = begin + takes;
    times_.busy[rank] += takes;
    times_.spans[rank].push_back(
        {instruction.action, instruction.micro_batch, instruction.index, begin, begin + takes});
    return true;
  }

  void count_kept() {
    for (const auto& spans : times_.spans) {
      const bool trains = std::ranges::any_of(spans, [](const auto& span) { return span.action == Action::kBackward; });
      int kept = 0;
      int peak = 0;
      for (const ScheduleTimes::Span& span : spans) {
        if (!trains || !chain_.chunks[at(span.chunk)].keeps_gradient) continue;
        kept += span.action == Action::kForward ? 1 : -1;
        peak = std::max(peak, kept);
      }
      times_.peak_kept_chunks.push_back(peak);
    }
  }

  const ChunkChain& chain_;
  const Schedule& schedule_;
  const ScheduleCosts& costs_;
  const int micro_batches_;
  std::vector<Crossing> crossings_[2];  // forward, gradient: by edge and micro-batch
  std::vector<Stream> streams_;         // by ordered pair
  std::vector<std::size_t> next_;       // by rank
  std::vector<double> clock_;           // by rank
  ScheduleTimes times_;
};

}  // namespace

ScheduleTimes time_schedule(const ChunkChain& chain, const Schedule& schedule, const ScheduleCosts& costs) {
  return Player(chain, schedule, costs).play();
}

}  // namespace kvloom
