// How a prompt is computed, run by run (DESIGN 5). What runs follows from the map, the rules and the sequence's own
// outcomes alone; when they run, and into how many pieces a chunk is cut, is the scheduler's.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "core/iteration_plan.h"
#include "core/kv_map.h"
#include "core/step_rows.h"

namespace kvloom {

// What is the same for all sequences.
struct PrefillRules {
  PrefillRules() = default;
  explicit PrefillRules(const KvMap& map);

  std::vector<Segment> segments;
  int layers = 0;
  int kv_end = 0;       // the first layer above the last KV layer
  bool upward = false;  // the map has upward reads: prompts are cut into blocks at multiples of `grid`
  std::int64_t grid = 0;
  std::int64_t window = 0;
  std::int64_t max_chunk = 0;
  std::int64_t passes = 0;  // a token settles after so many at the latest; 0: no cap

  // Layer-rows of a run: rows times the layers that run for them.
  std::int64_t cost(const RowRun& run) const;
  // How many of the run's first rows cost no more than `budget`.
  std::int32_t rows_within(const RowRun& run, std::int64_t budget) const;
  // The most that a run costs that may not be cut further.
  std::int64_t largest_uncut() const;
};

// Rows of iterated segments, times layers: in passes, and settled by them.
struct PassCount {
  std::int64_t ran = 0;
  std::int64_t settled = 0;
};

// Where a prompt stands. A map without upward reads has one segment, and whatever was run is final. Otherwise the
// segments of a block are done one after the other, and the block is final when the last one is done.
class PrefillProgress {
 public:
  // Positions before `first` are final; the prompt ends before `end`.
  PrefillProgress(const PrefillRules& rules, std::int64_t first, std::int64_t end);

  bool is_done() const { return block_first_ == end_; }
  // All positions before it are final.
  std::int64_t computed() const { return block_first_; }
  // The run that comes next, its slot left open. A chunk may be cut to its first rows.
  RowRun next(std::int64_t wanted_from) const;
  // Such a run has been done, and of a wavefront's rows so many settled by the tolerance. Returns how many settled in
  // all. Throws Error when that is more than it has.
  std::int32_t finish(const RowRun& run, std::int32_t settled, std::int64_t wanted_from);

  // Of blocks that are final.
  PassCount passes() const { return final_passes_; }
  // A token settled only because of the cap on passes.
  bool was_capped() const { return capped_; }

 private:
  void begin_block(std::int64_t first);
  void leave_settled_segments(std::int64_t wanted_from);

  const PrefillRules* rules_;
  std::int64_t end_;
  std::int64_t block_first_ = 0;
  std::int64_t block_end_ = 0;
  std::size_t segment_ = 0;
  std::int64_t settled_ = 0;           // the segment is done up to here
  std::vector<std::int64_t> entered_;  // by row after `settled_` that is in the window: passes that it was in
  PassCount block_passes_;
  PassCount final_passes_;
  bool capped_ = false;
};

}  // namespace kvloom
