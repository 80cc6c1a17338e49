// Plays the instruction lists of a schedule, one message after the other, by what parallel/schedule.h and
// parallel/chunk_chain.h promise alone. It shares nothing with the checker and the clock of parallel/.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "parallel/schedule.h"

namespace kvloom::test {

class SchedulePlayer {
 public:
  SchedulePlayer(const ChunkChain& chain, int micro_batches, SchedulePolicy policy, const ScheduleCosts& costs)
      : chain_(chain), micro_batches_(micro_batches), policy_(policy), costs_(costs) {}

  struct Played {
    double makespan = 0;
    std::vector<double> busy;        // by rank
    std::vector<int> kept;           // by rank: the most chunks with gradient between their forward and their backward
    std::size_t least_ahead = 1000;  // computes between a receive and its use, or before it where that is less: none
  };

  // Throws std::runtime_error with what is wrong.
  Played play(const Schedule& schedule) {
    const std::size_t ranks = schedule.ranks.size();
    require(static_cast<int>(ranks) == chain_.ranks, "ranks");
    played_.busy.assign(ranks, 0);
    played_.kept.assign(ranks, 0);
    states_.assign(ranks, {});
    bool moved = true;
    while (moved) {
      moved = false;
      for (std::size_t rank = 0; rank < ranks; ++rank) {
        State& state = states_[rank];
        while (state.next < schedule.ranks[rank].size() && run(static_cast<int>(rank), schedule.ranks[rank])) {
          ++state.next;
          moved = true;
        }
      }
    }
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      require(states_[rank].next == schedule.ranks[rank].size(), fmt::format("rank {} hangs", rank));
      played_.makespan = std::max(played_.makespan, states_[rank].clock);
    }
    expect_all_done();
    return played_;
  }

 private:
  using Task = std::pair<int, int>;  // micro-batch and chunk
  struct State {
    std::size_t next = 0;
    double clock = 0;
    std::set<Task> forward;
    std::set<Task> backward;
    std::vector<Task> order;  // of all computes
    int kept = 0;
  };
  struct Message {
    std::tuple<int, int, bool> key;  // micro-batch, edge, gradient
    double at;
    std::size_t computes_before = 0;  // of the receiver, when it was posted
  };
  struct Arrival {
    double time;
    std::size_t computes_before;
  };
  struct Link {
    std::deque<Message> sent;
    std::deque<Message> posted;
    double free = 0;
  };

  static void require(bool holds, const std::string& what) {
    if (!holds) throw std::runtime_error("the schedule is wrong: " + what);
  }

  const Edge& edge(int index) const { return chain_.edges.at(static_cast<std::size_t>(index)); }
  const Chunk& chunk(int index) const { return chain_.chunks.at(static_cast<std::size_t>(index)); }

  bool run(int rank, const std::vector<Instruction>& list) {
    State& state = states_[static_cast<std::size_t>(rank)];
    const Instruction& step = list[state.next];
    switch (step.action) {
      case Action::kSend:
        send(rank, state, step);
        return true;
      case Action::kReceive:
        receive(rank, state, step);
        return true;
      case Action::kForward:
        return compute(rank, state, step, false);
      case Action::kBackward:
        return compute(rank, state, step, true);
    }
    return false;
  }

  void send(int rank, State& state, const Instruction& step) {
    const Edge& along = edge(step.index);
    require(rank == (step.gradient ? along.to_rank : along.from_rank), describe(chain_, step) + " by another rank");
    if (step.gradient) {
      require(along.returns_gradient, describe(chain_, step) + ": nothing comes back along it");
      for (const int reader : along.readers) {
        if (!chunk(reader).keeps_gradient) continue;
        require(state.backward.contains({step.micro_batch, reader}), describe(chain_, step) + " before it is complete");
      }
    } else {
      require(state.forward.contains({step.micro_batch, along.from_chunk}),
              describe(chain_, step) + " before it is made");
    }
    Link& link = links_[{rank, step.gradient ? along.from_rank : along.to_rank}];
    link.sent.push_back({{step.micro_batch, step.index, step.gradient}, state.clock});
    cross(link);
  }

  void receive(int rank, State& state, const Instruction& step) {
    const Edge& along = edge(step.index);
    require(rank == (step.gradient ? along.from_rank : along.to_rank), describe(chain_, step) + " by another rank");
    Link& link = links_[{step.gradient ? along.to_rank : along.from_rank, rank}];
    link.posted.push_back({{step.micro_batch, step.index, step.gradient}, state.clock, state.order.size()});
    cross(link);
  }

  // A link carries one message after the other, each once it is sent and wanted.
  void cross(Link& link) {
    while (!link.sent.empty() && !link.posted.empty()) {
      const Message& sent = link.sent.front();
      const Message& posted = link.posted.front();
      require(sent.key == posted.key, "a message meets the receive of another");
      const auto& [micro_batch, index, gradient] = sent.key;
      const auto& costs = gradient ? costs_.gradient_crossing : costs_.crossing;
      link.free = std::max({link.free, sent.at, posted.at}) + costs.at(static_cast<std::size_t>(index));
      require(arrived_.try_emplace(sent.key, Arrival{link.free, posted.computes_before}).second, "a message twice");
      link.sent.pop_front();
      link.posted.pop_front();
    }
  }

  // False: something that it reads is still on its way.
  bool compute(int rank, State& state, const Instruction& step, bool backward) {
    const Task task{step.micro_batch, step.index};
    const Chunk& one = chunk(step.index);
    require(one.rank == rank, describe(chain_, step) + " on another rank");
    double begin = state.clock;
    for (std::size_t i = 0; i < chain_.edges.size(); ++i) {
      const Edge& along = chain_.edges[i];
      const bool reads = backward ? along.from_chunk == step.index && along.returns_gradient
                                  : along.to_rank == rank && std::ranges::count(along.readers, step.index) > 0;
      if (!reads) continue;
      const auto found = arrived_.find({step.micro_batch, static_cast<int>(i), backward});
      if (found == arrived_.end()) return false;
      begin = std::max(begin, found->second.time);
      if (used_.insert(found->first).second) note_ahead(state, found->second);
    }
    check_order(state, task, one, backward);
    (backward ? state.backward : state.forward).insert(task);
    if (one.keeps_gradient && policy_ != SchedulePolicy::kForwardOnly) {
      state.kept += backward ? -1 : 1;
      auto& most = played_.kept[static_cast<std::size_t>(rank)];
      most = std::max(most, state.kept);
    }
    state.order.push_back(task);
    const double takes = (backward ? costs_.backward : costs_.forward).at(static_cast<std::size_t>(step.index));
    state.clock = begin + takes;
    played_.busy[static_cast<std::size_t>(rank)] += takes;
    return true;
  }

  void note_ahead(const State& state, const Arrival& arrival) {
    if (arrival.computes_before == 0) return;  // posted before anything
    played_.least_ahead = std::min(played_.least_ahead, state.order.size() - arrival.computes_before);
  }

  // A micro-batch's chunks of a rank run in the order of the chain, and backward in the reverse of it.
  void check_order(const State& state, const Task& task, const Chunk& one, bool backward) const {
    const auto& [micro_batch, index] = task;
    require(micro_batch >= 0 && micro_batch < micro_batches_, "a micro-batch that is not there");
    require(!(backward ? state.backward : state.forward).contains(task), "a chunk twice");
    require(!backward || (one.keeps_gradient && policy_ != SchedulePolicy::kForwardOnly), "a backward of no gradient");
    if (policy_ == SchedulePolicy::kGPipe && !backward) {
      require(state.backward.empty(), "GPipe: a forward after a backward");
    }
    for (int other = 0; other < static_cast<int>(chain_.chunks.size()); ++other) {
      if (chunk(other).rank != one.rank) continue;
      const bool forward_before = !backward ? other < index : true;
      if (forward_before) require(state.forward.contains({micro_batch, other}), "a chunk before what it reads");
      if (backward && other > index && chunk(other).keeps_gradient) {
        require(state.backward.contains({micro_batch, other}), "a backward before that of a later chunk");
      }
    }
  }

  void expect_all_done() const {
    for (const auto& [ranks, link] : links_) require(link.sent.empty() && link.posted.empty(), "a message is left");
    for (int index = 0; index < static_cast<int>(chain_.chunks.size()); ++index) {
      const State& state = states_[static_cast<std::size_t>(chunk(index).rank)];
      for (int micro_batch = 0; micro_batch < micro_batches_; ++micro_batch) {
        require(state.forward.contains({micro_batch, index}), "a forward is missing");
        const bool wanted = chunk(index).keeps_gradient && policy_ != SchedulePolicy::kForwardOnly;
        require(state.backward.contains({micro_batch, index}) == wanted, "a backward is missing");
      }
    }
  }

  const ChunkChain& chain_;
  int micro_batches_;
  SchedulePolicy policy_;
  const ScheduleCosts& costs_;
  std::vector<State> states_;
  std::map<std::pair<int, int>, Link> links_;  // by sender and receiver
  std::map<std::tuple<int, int, bool>, Arrival> arrived_;
  std::set<std::tuple<int, int, bool>> used_;
  Played played_;
};

}  // namespace kvloom::test
