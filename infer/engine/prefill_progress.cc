#include "infer/engine/prefill_progress.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvloom {
namespace {

// Layers that run for every row, and those that run for wanted ones alone.
std::int64_t layers_for_all(const RowRun& run, int kv_end) {
  return std::max(0, std::min(run.layers.end, kv_end) - run.layers.first);
}

std::int64_t unwanted_rows(const RowRun& run) {
  return std::clamp<std::int64_t>(run.wanted_from - run.first_position, 0, run.rows);
}

}  // namespace

PrefillRules::PrefillRules(const KvMap& map)
    : segments(segments_of(map)), layers(map.layers()), kv_end(map.kv_layers().back() + 1) {
  upward = std::ranges::any_of(segments, &Segment::iterated);
}

std::int64_t PrefillRules::cost(const RowRun& run) const {
  const std::int64_t unwanted = unwanted_rows(run);
  return unwanted * layers_for_all(run, kv_end) + (run.rows - unwanted) * (run.layers.end - run.layers.first);
}

std::int32_t PrefillRules::rows_within(const RowRun& run, std::int64_t budget) const {
  if (budget <= 0) return 0;
  std::int64_t rows = unwanted_rows(run);
  const std::int64_t each = layers_for_all(run, kv_end);
  if (rows * each > budget) return static_cast<std::int32_t>(budget / each);
  rows += (budget - rows * each) / (run.layers.end - run.layers.first);
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(rows, 0, run.rows));
}

std::int64_t PrefillRules::largest_uncut() const {
  std::int64_t most = layers;  // one row
  for (const Segment& segment : segments) {
    if (segment.iterated) most = std::max(most, std::min(window, grid) * (segment.last - segment.first + 1));
  }
  return most;
}

void PrefillProgress::begin(std::int64_t first) {
  block_first_ = settled_ = first;
  block_end_ = rules_->upward ? std::min(prompt_, (first / rules_->grid + 1) * rules_->grid) : prompt_;
  segment_ = 0;
  passes_.clear();
  block_rows_ = block_settled_ = 0;
}

RowRun PrefillProgress::next(std::int64_t wanted_from) const {
  const Segment& segment = rules_->segments[segment_];
  RowRun run{.kind = segment.iterated ? RowKind::kWavefront : RowKind::kChunk,
             .layers = {segment.first, segment.last + 1},
             .first_position = settled_,
             .block_first = block_first_,
             .wanted_from = wanted_from};
  const std::int64_t most = segment.iterated ? rules_->window : rules_->max_chunk;
  run.rows = static_cast<std::int32_t>(std::min(most, block_end_ - settled_));
  if (!segment.iterated) return run;
  run.entering = run.rows - static_cast<std::int32_t>(passes_.size());
  if (rules_->passes == 1) run.forced = run.rows;
  if (rules_->passes > 1) {
    const auto is_last_pass = [&](std::int64_t passes) { return passes + 1 >= rules_->passes; };
    run.forced = std::max(1, static_cast<std::int32_t>(std::ranges::count_if(passes_, is_last_pass)));
  }
  return run;
}

std::int32_t PrefillProgress::finish(const RowRun& run, std::int32_t settled, std::int64_t wanted_from) {
  if (settled < 0 || settled > run.rows) fail("prefill: {} rows of a run of {} settled", settled, run.rows);
  if (run.kind == RowKind::kWavefront) {
    capped_ |= run.forced > std::max(1, settled);
    settled = std::max(settled, run.forced);
    const int layers = run.layers.end - run.layers.first;
    block_rows_ += std::int64_t{run.rows} * layers;
    block_settled_ += std::int64_t{settled} * layers;
    passes_.resize(static_cast<std::size_t>(run.rows), 0);
    passes_.erase(passes_.begin(), passes_.begin() + settled);
    for (std::int64_t& passes : passes_) ++passes;
  } else {
    settled = run.rows;
  }
  settled_ += settled;
  if (!rules_->upward) begin(settled_);
  leave_settled_segments(wanted_from);
  return settled;
}

void PrefillProgress::leave_settled_segments(std::int64_t wanted_from) {
  while (settled_ == block_end_ && block_first_ < block_end_) {
    if (++segment_ < rules_->segments.size()) {
      const bool is_above_sources = rules_->segments[segment_].first >= rules_->kv_end;
      settled_ = is_above_sources ? std::clamp(wanted_from, block_first_, block_end_) : block_first_;
      continue;
    }
    if (block_end_ > counted_until_) {
      counted_rows_ += block_rows_;
      counted_settled_ += block_settled_;
      counted_until_ = block_end_;
    }
    return begin(block_end_);
  }
}

double PrefillProgress::passes_per_token() const {
  return counted_settled_ == 0 ? 1 : static_cast<double>(counted_rows_) / static_cast<double>(counted_settled_);
}

}  // namespace kvloom
