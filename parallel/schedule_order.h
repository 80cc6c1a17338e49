// In which order each rank of a pipeline computes: the part of a schedule that is a choice. Sends and receives follow
// from it (schedule.h).
#pragma once

#include <vector>

#include "parallel/chunk_chain.h"
#include "parallel/schedule.h"

namespace kvloom {

// A chunk of a micro-batch, run forward or backward.
struct ComputeTask {
  Action action;  // kForward or kBackward
  int micro_batch;
  int chunk;

  friend bool operator==(const ComputeTask&, const ComputeTask&) = default;
};

struct ComputeOrder {
  std::vector<std::vector<ComputeTask>> ranks;
};

// List scheduling: whenever a rank is free it takes what is ready, the lowest micro-batch before the others. GPipe:
// every forward of a rank before its first backward. One forward, one backward: forward before backward, but a
// micro-batch is admitted, in order, to the passes that a rank keeps only while fewer than a limit are kept there, and
// to the pipeline only while fewer than another limit are under way. The lowest unfinished micro-batch is always
// admitted, so any map reaches its end. Where every rank is visited once, the limit is the ranks from here to the end
// of the pipeline. Where passes circulate, a few limits are played, and the smallest whose time comes within a
// hundredth of the best is taken.
ComputeOrder order_computes(const ChunkChain& chain, int micro_batches, SchedulePolicy policy,
                            const ScheduleCosts& costs);

}  // namespace kvloom
