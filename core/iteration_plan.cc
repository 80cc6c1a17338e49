#include "core/iteration_plan.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvloom {
namespace {

// What planning one segment needs to know of the whole.
struct Planner {
  const KvMap& map;
  PlanMode mode;
  std::int64_t passes;         // of iterated segments
  std::vector<int> last_pass;  // by layer, of the segments planned so far

  int read_pass(KvPart part, int layer, const Segment& segment, int pass) const {
    const int source = map.source(part, layer);
    if (source < segment.first) return last_pass[static_cast<std::size_t>(source)];
    return source > layer ? pass - 1 : pass;
  }

  bool computes_block(int layer, const Segment& segment, bool last) const { return layer != segment.last || last; }

  bool reads(int layer, const Segment& segment, int pass, bool last) const {
    return computes_block(layer, segment, last) && !(map.reads_upward(layer) && pass == 0);
  }

  KeyValueWork key_value_work(KvPart part, int source, const Segment& segment, int pass, bool last) const {
    if (last && mode == PlanMode::kPrefill && map.owns(part, source)) return KeyValueWork::kCompute;  // for the cache
    const bool is_read = std::ranges::any_of(map.readers(part, source), [&](int reader) {
      // In a pass that is the only one, who reads from above reads nothing.
      if (reader > segment.last) return last && !(map.reads_upward(reader) && passes == 1);
      if (reader < source) return !last;  // read by the next pass
      return reads(reader, segment, pass, last);
    });
    return is_read ? KeyValueWork::kCompute : KeyValueWork::kNone;
  }

  LayerRun run(int layer, const Segment& segment, int pass, bool last) const {
    const bool block = computes_block(layer, segment, last);
    const bool asked = mode == PlanMode::kPrefill && last && layer >= map.last_kv_layer();
    LayerRun run{.layer = layer,
                 .pass = pass,
                 .key_value = {},
                 .attention = reads(layer, segment, pass, last) ? AttentionWork::kRead : AttentionWork::kNone,
                 .block = block ? BlockWork::kCompute : BlockWork::kNone,
                 .positions = asked ? Positions::kAsked : Positions::kAll,
                 .read_pass = {}};
    for (const KvPart part : kKvParts) {
      run.key_value[part] = key_value_work(part, layer, segment, pass, last);
      if (run.attention == AttentionWork::kRead) run.read_pass[part] = read_pass(part, layer, segment, pass);
    }
    return run;
  }
};

void check_passes(const Passes& passes, PlanMode mode, std::int64_t positions) {
  if (passes.without_gradient < 0 || passes.without_gradient > kMostPasses) {
    reject_input("passes.without_gradient: {}; right is 0 to {}", passes.without_gradient, kMostPasses);
  }
  const int fewest = mode == PlanMode::kTrain ? 1 : 0;
  if (passes.with_gradient < fewest || passes.with_gradient > kMostPasses) {
    reject_input("passes.with_gradient: {}; right is {} to {}", passes.with_gradient, fewest, kMostPasses);
  }
  if (passes.without_gradient + passes.with_gradient < 1) reject_input("passes: at least one pass is needed");
  if (mode == PlanMode::kPrefill && positions < 1) reject_input("prefill: a prompt of {} tokens", positions);
}

}  // namespace

std::vector<Segment> segments_of(const KvMap& map) {
  std::vector<Segment> segments;
  for (int layer = 0; layer < map.layers();) {
    if (!map.reads_upward(layer)) {
      if (segments.empty() || segments.back().iterated) segments.push_back({layer, layer, false});
      segments.back().last = layer++;
      continue;
    }
    int top = map.highest_source(layer);
    for (int inside = layer; inside <= top; ++inside) top = std::max(top, map.highest_source(inside));
    segments.push_back({layer, top, true});
    layer = top + 1;
  }
  return segments;
}

IterationPlan make_iteration_plan(const KvMap& map, const Passes& passes, PlanMode mode, std::int64_t positions) {
  check_passes(passes, mode, positions);
  IterationPlan plan{segments_of(map), {}};
  const std::int64_t all = std::int64_t{passes.without_gradient} + passes.with_gradient;
  Planner planner{map, mode, mode == PlanMode::kPrefill ? std::min(all, positions) : all,
                  std::vector<int>(static_cast<std::size_t>(map.layers()), 0)};
  for (std::size_t index = 0; index < plan.segments.size(); ++index) {
    const Segment& segment = plan.segments[index];
    const std::int64_t count = segment.iterated ? planner.passes : 1;
    const int first_with_gradient = segment.iterated ? passes.without_gradient : 0;
    for (int pass = 0; pass < count; ++pass) {
      const bool last = pass + 1 == count;
      PlanStep step{.segment = static_cast<int>(index),
                    .pass = pass,
                    .keeps_gradient = mode == PlanMode::kTrain && pass >= first_with_gradient,
                    .last = last,
                    .layers = {}};
      for (int layer = segment.first; layer <= segment.last; ++layer) {
        step.layers.push_back(planner.run(layer, segment, pass, last));
      }
      plan.steps.push_back(std::move(step));
    }
    std::fill(planner.last_pass.begin() + segment.first, planner.last_pass.begin() + segment.last + 1,
              static_cast<int>(count) - 1);
  }
  return plan;
}

int expected_gradient_readers(const IterationPlan& plan, const KvMap& map, KvPart part, int source, int pass) {
  int readers = 0;
  for (const PlanStep& step : plan.steps) {
    if (!step.keeps_gradient) continue;
    for (const LayerRun& run : step.layers) {
      if (run.attention != AttentionWork::kRead) continue;
      if (map.source(part, run.layer) == source && run.read_pass[part] == pass) ++readers;
    }
  }
  return readers;
}

LayerRunCount count_layer_runs(const IterationPlan& plan) {
  LayerRunCount count;
  for (const PlanStep& step : plan.steps) {
    for (const LayerRun& run : step.layers) {
      if (run.block == BlockWork::kNone) {
        ++count.key_value_only;
        if (step.keeps_gradient) ++count.key_value_only_with_gradient;
        continue;
      }
      ++count.blocks;
      if (step.keeps_gradient) ++count.blocks_with_gradient;
      if (run.attention == AttentionWork::kNone) ++count.without_attention;
      if (run.positions == Positions::kAsked) ++count.asked_only;
    }
  }
  return count;
}

}  // namespace kvloom
