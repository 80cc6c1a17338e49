#include "parallel/step_summary.h"

#include <cstddef>
#include <numeric>

namespace kvloom {
namespace {

constexpr std::size_t at(int index) { return static_cast<std::size_t>(index); }

}  // namespace

std::vector<StageSummary> stages_of(const StepShape& shape, const PredictedStep& step) {
  std::vector<StageSummary> stages;
  for (int stage = 0; stage < step.layout.stages(); ++stage) {
    StageSummary& one = stages.emplace_back(StageSummary{.rank = step.layout.rank_of_stage(stage),
                                                         .first_layer = step.layout.first_layer(stage),
                                                         .last_layer = step.layout.end_layer(stage) - 1});
    for (int layer = one.first_layer; layer <= one.last_layer; ++layer) {
      if (shape.model.kv_map.is_kv_layer(layer)) one.owned.push_back(layer);
    }
  }
  for (const Edge& edge : step.chain.edges) {
    if (edge.kind != EdgeKind::kKeyValue) continue;
    for (const int reader : edge.readers) stages[at(step.chain.chunks[at(reader)].stage)].received.insert(edge.source);
  }
  const double all = std::accumulate(step.times.busy.begin(), step.times.busy.end(), 0.0);
  for (const auto& spans : step.times.spans) {
    for (const ScheduleTimes::Span& span : spans) {
      stages[at(step.chain.chunks[at(span.chunk)].stage)].compute_share += (span.end - span.begin) / all;
    }
  }
  return stages;
}

std::vector<RankLink> links_of(const PredictedStep& step) {
  std::vector<RankLink> links;
  for (int from = 0; from < step.layout.ranks(); ++from) {
    for (int to = 0; to < step.layout.ranks(); ++to) {
      const LinkBytes bytes = link_bytes(step.chain, step.costs, from, to);
      if (bytes.messages > 0) links.push_back({from, to, bytes});
    }
  }
  return links;
}

double idle_share(const PredictedStep& step, int rank) {
  return step.times.makespan > 0 ? 1 - step.times.busy[at(rank)] / step.times.makespan : 0;
}

}  // namespace kvloom
