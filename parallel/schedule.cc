#include "parallel/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "kernels/error.h"
#include "parallel/schedule_order.h"

namespace kvloom {
namespace {

constexpr std::size_t at(int index) { return static_cast<std::size_t>(index); }

// A receive is posted while this many computes still come before the one that uses it.
constexpr std::size_t kPostedAhead = 2;

// Adds sends and receives to the order in which ranks compute.
class InstructionLists {
 public:
  InstructionLists(const ChunkChain& chain, int micro_batches, const ComputeOrder& order)
      : chain_(chain), micro_batches_(micro_batches), order_(order) {
    for (auto& positions : position_) positions.assign(chain.chunks.size() * at(micro_batches), 0);
    for (const auto& tasks : order.ranks) {
      for (std::size_t i = 0; i < tasks.size(); ++i)
        position_of(tasks[i].action, tasks[i].micro_batch, tasks[i].chunk) = i;
    }
  }

  Schedule make() {
    list_messages();
    for (int to = 0; to < chain_.ranks; ++to) {
      posted_.emplace_back(order_.ranks[at(to)].size());
      for (int from = 0; from < chain_.ranks; ++from) post(from, to);
    }
    Schedule schedule;
    for (int rank = 0; rank < chain_.ranks; ++rank) schedule.ranks.push_back(list_of(rank));
    return schedule;
  }

 private:
  struct Message {
    int edge;
    int micro_batch;
    bool gradient;
  };

  std::size_t& position_of(Action action, int micro_batch, int chunk) {
    return position_[action == Action::kBackward ? 1 : 0][at(chunk) * at(micro_batches_) + at(micro_batch)];
  }

  std::vector<Message>& stream(int from, int to) { return streams_[at(from * chain_.ranks + to)]; }

  static bool is_backward(const ComputeTask& task) { return task.action == Action::kBackward; }

  const std::vector<int>& edges_after(const ComputeTask& task) const {
    return is_backward(task) ? chain_.backward_gives[at(task.chunk)] : chain_.gives[at(task.chunk)];
  }

  // What each ordered pair of ranks sends, in order.
  void list_messages() {
    streams_.resize(at(chain_.ranks * chain_.ranks));
    for (const auto& tasks : order_.ranks) {
      for (const ComputeTask& task : tasks) {
        for (const int edge : edges_after(task)) {
          const Edge& ends = chain_.edges[at(edge)];
          auto& messages =
              is_backward(task) ? stream(ends.to_rank, ends.from_rank) : stream(ends.from_rank, ends.to_rank);
          messages.push_back({edge, task.micro_batch, is_backward(task)});
        }
      }
    }
  }

  // The compute of the receiver that first uses a message.
  std::size_t use_of(const Message& message) {
    const Edge& edge = chain_.edges[at(message.edge)];
    return message.gradient ? position_of(Action::kBackward, message.micro_batch, edge.from_chunk)
                            : position_of(Action::kForward, message.micro_batch, edge.readers.front());
  }

  // Posts a pair's receives in the order of the sends: none later than one that is sent after it.
  void post(int from, int to) {
    const std::vector<Message>& messages = stream(from, to);
    std::vector<std::size_t> places(messages.size());
    std::size_t latest = order_.ranks[at(to)].size();
    for (std::size_t i = messages.size(); i-- > 0;) {
      const std::size_t use = use_of(messages[i]);
      latest = std::min(latest, use - std::min(use, kPostedAhead));
      places[i] = latest;
    }
    for (std::size_t i = 0; i < messages.size(); ++i) posted_[at(to)][places[i]].push_back(messages[i]);
  }

  std::vector<Instruction> list_of(int rank) const {
    std::vector<Instruction> list;
    for (std::size_t i = 0; i < order_.ranks[at(rank)].size(); ++i) {
      const ComputeTask& task = order_.ranks[at(rank)][i];
      for (const Message& message : posted_[at(rank)][i]) {
        list.push_back({Action::kReceive, message.micro_batch, message.edge, message.gradient});
      }
      list.push_back({task.action, task.micro_batch, task.chunk});
      for (const int edge : edges_after(task))
        list.push_back({Action::kSend, task.micro_batch, edge, is_backward(task)});
    }
    return list;
  }

  const ChunkChain& chain_;
  const int micro_batches_;
  const ComputeOrder& order_;
  std::vector<std::size_t> position_[2];                   // forward, backward: of a rank's computes, by chunk
  std::vector<std::vector<Message>> streams_;              // by ordered pair
  std::vector<std::vector<std::vector<Message>>> posted_;  // by rank, before its compute
};

void check_costs(const ChunkChain& chain, const ScheduleCosts& costs) {
  if (costs.forward.size() == chain.chunks.size() && costs.backward.size() == chain.chunks.size() &&
      costs.crossing.size() == chain.edges.size() && costs.gradient_crossing.size() == chain.edges.size()) {
    return;
  }
  fail("schedule: costs of {} forward and {} backward chunks and {} edges for a chain of {} chunks and {} edges",
       costs.forward.size(), costs.backward.size(), costs.crossing.size(), chain.chunks.size(), chain.edges.size());
}

}  // namespace

ScheduleCosts ScheduleCosts::by_layer_runs(const ChunkChain& chain, const IterationPlan& plan) {
  ScheduleCosts costs;
  for (const Chunk& chunk : chain.chunks) {
    const std::vector<LayerRun>& runs = plan.steps[chunk.step].layers;
    double blocks = 0;
    for (std::size_t i = chunk.first_run; i < chunk.end_run; ++i)
      blocks += runs[i].block == BlockWork::kCompute ? 1 : 0;
    costs.forward.push_back(blocks);
    costs.backward.push_back(chunk.keeps_gradient ? 2 * blocks : 0);
  }
  costs.crossing.assign(chain.edges.size(), 0);
  costs.gradient_crossing.assign(chain.edges.size(), 0);
  return costs;
}

double ScheduleTimes::idle_share() const {
  const double whole = makespan * static_cast<double>(busy.size());
  return whole > 0 ? 1 - std::accumulate(busy.begin(), busy.end(), 0.0) / whole : 0;
}

Schedule make_schedule(const ChunkChain& chain, int micro_batches, SchedulePolicy policy, const ScheduleCosts& costs) {
  if (micro_batches < 1) reject_input("schedule: {} micro-batches; at least one is needed", micro_batches);
  check_costs(chain, costs);
  const ComputeOrder order = order_computes(chain, micro_batches, policy, costs);
  return InstructionLists(chain, micro_batches, order).make();
}

std::string describe(const ChunkChain& chain, const Instruction& instruction) {
  const auto index = at(instruction.index);
  const std::string of = fmt::format("of micro-batch {}", instruction.micro_batch);
  const bool computes = instruction.action == Action::kForward || instruction.action == Action::kBackward;
  const std::size_t count = computes ? chain.chunks.size() : chain.edges.size();
  if (instruction.index < 0 || index >= count) {
    return fmt::format("{} {} {}", computes ? "chunk" : "edge", instruction.index, of);
  }
  if (computes) {
    return fmt::format("{} of chunk {} (stage {}) {}", instruction.action == Action::kForward ? "forward" : "backward",
                       instruction.index, chain.chunks[index].stage, of);
  }
  return fmt::format("{} of {}{} {}", instruction.action == Action::kSend ? "send" : "receive",
                     instruction.gradient ? "the gradient along " : "", describe(chain.edges[index]), of);
}

}  // namespace kvloom
