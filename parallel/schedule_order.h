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

// List scheduling: whenever a rank is free it takes what is ready, backward before forward and the lowest micro-batch
// before the others. One forward, one backward admits a micro-batch to a rank's kept passes, in order, only while
// fewer than a limit have kept activations there; the lowest unfinished micro-batch is always admitted, so any map
// reaches its end. Where every rank is visited once the limit is the ranks from here to the end of the pipeline; for
// other chains it is the smallest of a few whose time comes within a hundredth of the best.
ComputeOrder order_computes(const ChunkChain& chain, int micro_batches, SchedulePolicy policy,
                            const ScheduleCosts& costs);

}  // namespace kvloom
