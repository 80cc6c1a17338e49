// Who computes, sends and receives what in which order: instruction lists, one a pipeline rank, made by a pure function
// and checked without a device (DESIGN 6).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/chunk_chain.h"

namespace kvloom {

enum class SchedulePolicy : std::uint8_t {
  kGPipe,                  // every forward, then every backward (Huang et al. 2019)
  kOneForwardOneBackward,  // backward as soon as there is one, forwards kept to what the pipeline needs
                           // (PipeDream-Flush, Narayanan et al. 2021, section 2.2); with several stages a rank this is
                           // the interleaved one
  kForwardOnly,            // evaluation
};

enum class Action : std::uint8_t {
  kForward,   // run chunk `index`
  kBackward,  // run chunk `index` backward; the head's loss and gradient come first where it is the head's input
  kSend,      // start to send along edge `index`: K/V or hidden states, or with `gradient` their gradient back
  kReceive,   // post the receive of the same
};

struct Instruction {
  Action action;
  int micro_batch;
  int index;              // chunk or edge
  bool gradient = false;  // kSend, kReceive: backwards along the edge

  friend bool operator==(const Instruction&, const Instruction&) = default;
};

// Times in any one unit. By chunk: forward and backward (the head's counted in where it belongs); by edge: one
// crossing, and one of its gradient back. A link carries one message after the other in each direction.
struct ScheduleCosts {
  std::vector<double> forward;
  std::vector<double> backward;
  std::vector<double> crossing;
  std::vector<double> gradient_crossing;

  // One for each block of a chunk forward, two backward, nothing for crossings.
  static ScheduleCosts by_layer_runs(const ChunkChain& chain, const IterationPlan& plan);
};

struct Schedule {
  std::vector<std::vector<Instruction>> ranks;
};

// What a schedule costs when every chunk and crossing takes what `costs` says.
struct ScheduleTimes {
  struct Span {
    Action action;  // kForward or kBackward
    int micro_batch;
    int chunk;
    double begin;
    double end;
  };
  double makespan = 0;
  std::vector<double> busy;              // by rank
  std::vector<int> peak_kept_chunks;     // by rank: the most chunks that have kept activations at one time
  std::vector<std::vector<Span>> spans;  // by rank, in order

  // The share of ranks x makespan in which nothing is computed.
  double idle_share() const;
};

// Within a rank, messages of each ordered pair of ranks are received in the order in which they are sent; receives are
// posted ahead of use. Throws InputError for fewer than one micro-batch.
Schedule make_schedule(const ChunkChain& chain, int micro_batches, SchedulePolicy policy, const ScheduleCosts& costs);

// Proves that a schedule runs every chunk of every micro-batch once (forward, and backward where it keeps gradient),
// that everything read was computed or received before, that sends and receives of every ordered pair of ranks agree in
// order, and that ranks which run their lists in order, with sends that do not wait, reach the end. Throws Error naming
// rank, instruction and edge.
void check_schedule(const ChunkChain& chain, int micro_batches, SchedulePolicy policy, const Schedule& schedule);

// The schedule played out; the schedule must be right.
ScheduleTimes time_schedule(const ChunkChain& chain, const Schedule& schedule, const ScheduleCosts& costs);

std::string describe(const ChunkChain& chain, const Instruction& instruction);

}  // namespace kvloom
