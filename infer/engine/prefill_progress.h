// How a prompt is computed, run by run (DESIGN 5). What runs follows from the map, the rules and the sequence's own
// outcomes alone; when they run, and into how many pieces a chunk is cut, is the scheduler's.
#pragma once

#include <cstdint>
#include <vector>

#include "core/iteration_plan.h"
#include "core/kv_map.h"
#include "core/step_rows.h"

namespace kvloom {

// What is the same for all sequences.
struct PrefillRules {
  explicit PrefillRules(const KvMap& map);

  // Layer-rows of a run: rows times the layers that run for them.
  std::int64_t cost(const RowRun& run) const;
  // How many of the run's first rows cost no more than `budget`.
  std::int32_t rows_within(const RowRun& run, std::int64_t budget) const;
  // The most that a run costs that cannot be cut.
  std::int64_t largest_uncut() const;

  std::vector<Segment> segments;
  int layers;
  int kv_end;             // the first layer above the last KV layer
  bool upward;            // the map has upward reads: prompts are cut into blocks at multiples of `grid`
  std::int64_t grid = 1;  // this and the rest as in SchedulerOptions
  std::int64_t window = 1;
  std::int64_t max_chunk = 1;
  std::int64_t passes = 0;
};

// Where a prompt stands. A map without upward reads has one segment, and whatever was run is final. Otherwise the
// segments of a block are done one after the other, and the block is final when the last one is done.
class PrefillProgress {
 public:
  PrefillProgress(const PrefillRules& rules, std::int64_t prompt) : rules_(&rules), prompt_(prompt) {}

  // Positions before `first` are final, and nothing else is done.
  void begin(std::int64_t first);
  std::int64_t computed() const { return block_first_; }
  // The run that comes next, its slot left open. A chunk may be cut to its first rows.
  RowRun next(std::int64_t wanted_from) const;
  // Such a run was done, and of a wavefront's rows so many settled by the tolerance. Returns how many settled in all.
  // Throws Error when the run has fewer.
  std::int32_t finish(const RowRun& run, std::int32_t settled, std::int64_t wanted_from);

  // Rows of iterated segments by settled ones, weighted by layers, of blocks that are final; 1 where there are none.
  // What is computed again is counted once.
  double passes_per_token() const;
  // A token settled only because of the cap on passes.
  bool was_capped() const { return capped_; }

 private:
  void leave_settled_segments(std::int64_t wanted_from);

  const PrefillRules* rules_;
  std::int64_t prompt_;
  std::int64_t block_first_ = 0;
  std::int64_t block_end_ = 0;
  std::size_t segment_ = 0;
  std::int64_t settled_ = 0;          // the segment is done up to here
  std::vector<std::int64_t> passes_;  // by row after `settled_` that is in the window: passes that it was in
  std::int64_t block_rows_ = 0;       // of iterated segments, times layers
  std::int64_t block_settled_ = 0;
  std::int64_t counted_rows_ = 0;
  std::int64_t counted_settled_ = 0;
  std::int64_t counted_until_ = 0;
  bool capped_ = false;
};

}  // namespace kvloom
