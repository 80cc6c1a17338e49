#include "parallel/placement.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "core/kv_store.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::size_t at(int index) { return static_cast<std::size_t>(index); }
constexpr double kInfinite = std::numeric_limits<double>::infinity();

// What a stage of layers [first, end) takes, whatever the other stages are.
class StageCosts {
 public:
  StageCosts(const StepCounter& counter, const Speeds& speeds, int stages)
      : counter_(counter), layers_(static_cast<int>(counter.shape().model.layers)) {
    const std::vector<double> work = work_of_layers();
    const double per_flop = 1 / speeds.flops_per_second;
    const double per_byte = speeds.link_bytes_per_second > 0 ? 1 / speeds.link_bytes_per_second : 0;
    for (int first = 0; first < layers_; ++first) {
      double flops = first == 0 ? counter.embedding_flops().total() : 0;
      for (int end = first + 1; end <= layers_; ++end) {
        flops += work[at(end - 1)];
        const double head = end == layers_ ? counter.head_flops().total() : 0;
        const double received = stages > 1 ? received_bytes(first, end) : 0;
        ranges_.push_back({(flops + head) * per_flop + received * per_byte, received});
      }
    }
  }

  struct Range {
    double seconds;  // of a micro-batch: computing, and receiving what stages below and above send
    double received;
  };
  const Range& of(int first, int end) const {
    return ranges_[at(first * layers_ - first * (first - 1) / 2 + end - first - 1)];
  }
  int layers() const { return layers_; }

 private:
  std::vector<double> work_of_layers() const {
    std::vector<double> work(at(layers_), 0);
    const std::vector<PlanStep>& steps = counter_.plan().steps;
    for (std::size_t step = 0; step < steps.size(); ++step) {
      for (std::size_t run = 0; run < steps[step].layers.size(); ++run) {
        work[at(steps[step].layers[run].layer)] += counter_.flops(step, run).total();
      }
    }
    return work;
  }

  // Hidden states of every pass that enters from below, and K/V that the stage reads and does not make; with the
  // gradients that go back.
  double received_bytes(int first, int end) const {
    const KvMap& map = counter_.shape().model.kv_map;
    double bytes = 0;
    std::set<KvName> read;
    for (const PlanStep& step : counter_.plan().steps) {
      const int bottom = step.layers.front().layer;
      const int top = step.layers.back().layer;
      if (top < first || bottom >= end) continue;
      const double ways = step.keeps_gradient ? 2 : 1;
      if (first > 0 && bottom <= first) bytes += ways * static_cast<double>(counter_.hidden_bytes());
      for (const LayerRun& run : step.layers) {
        if (run.layer < first || run.layer >= end || run.attention != AttentionWork::kRead) continue;
        for (const KvPart part : kKvParts) {
          const KvName name{part, map.source(part, run.layer), run.read_pass[part]};
          if (name.source >= first && name.source < end) continue;
          if (!read.insert(name).second) continue;
          bytes += static_cast<double>(counter_.part_bytes(counter_.shape().dtype));
          if (step.keeps_gradient) bytes += static_cast<double>(counter_.part_bytes(DType::kF32));
        }
      }
    }
    return bytes;
  }

  const StepCounter& counter_;
  int layers_;
  std::vector<Range> ranges_;
};

// The cut into `stages` with the least `cost` (`join` of the stages' costs), or none.
template <typename Cost, typename Join>
std::vector<int> best_cut(int layers, int stages, const Cost& cost, const Join& join) {
  struct Best {
    double cost = kInfinite;
    int previous = -1;
  };
  // best[v][end]: stages 0..v over layers [0, end).
  std::vector<std::vector<Best>> best(at(stages), std::vector<Best>(at(layers) + 1));
  for (int end = 1; end <= layers; ++end) best[0][at(end)] = {cost(0, 0, end), 0};
  for (int stage = 1; stage < stages; ++stage) {
    for (int end = stage + 1; end <= layers; ++end) {
      for (int first = stage; first < end; ++first) {
        const double joined = join(best[at(stage - 1)][at(first)].cost, cost(stage, first, end));
        if (joined < best[at(stage)][at(end)].cost) best[at(stage)][at(end)] = {joined, first};
      }
    }
  }
  if (best[at(stages - 1)][at(layers)].cost == kInfinite) return {};
  std::vector<int> boundaries = {layers};
  for (int stage = stages - 1; stage >= 0; --stage)
    boundaries.push_back(best[at(stage)][at(boundaries.back())].previous);
  std::ranges::reverse(boundaries);
  return boundaries;
}

// A rank's memory is known once there is a schedule; this guess is for choosing candidates.
class MemoryGuess {
 public:
  MemoryGuess(const StepCounter& counter, const PlacementLimits& limits) : counter_(counter), limits_(limits) {
    const auto layers = static_cast<int>(counter.shape().model.layers);
    kept_.assign(at(layers) + 1, 0);
    for (const PlanStep& step : counter.plan().steps) {
      if (!step.keeps_gradient) continue;
      for (const LayerRun& run : step.layers) kept_[at(run.layer) + 1] += static_cast<double>(counter.kept_bytes(run));
    }
    std::partial_sum(kept_.begin(), kept_.end(), kept_.begin());
    for (int layer = 0; layer < layers; ++layer) weights_.push_back(weights_to(layer, layers));
    weights_.push_back(weights_to(layers, layers));
  }

  double of(int stage, int first, int end) const {
    const int stages = limits_.ranks * limits_.stages_per_rank;
    const int in_flight = std::min(counter_.shape().micro_batches, std::max(1, limits_.ranks - stage % limits_.ranks));
    return weights_[at(end)] - weights_[at(first)] +
           (kept_[at(end)] - kept_[at(first)]) * (counter_.shape().policy == SchedulePolicy::kGPipe
                                                      ? counter_.shape().micro_batches
                                                      : in_flight * stages / limits_.ranks);
  }

 private:
  // Of layers [0, end) as the first of two stages; the embedding and the head where they are.
  double weights_to(int end, int layers) const {
    if (end == 0) return 0;
    if (end == layers) return static_cast<double>(counter_.weight_bytes(StageLayout(1, {0, layers}), 0));
    return static_cast<double>(counter_.weight_bytes(StageLayout(2, {0, end, layers}), 0));
  }

  const StepCounter& counter_;
  const PlacementLimits& limits_;
  std::vector<double> kept_;     // of one micro-batch, layers below
  std::vector<double> weights_;  // of layers below
};

// The most promising first; some may be equal.
std::vector<std::vector<int>> candidates(const StepCounter& counter, const Speeds& speeds,
                                         const PlacementLimits& limits) {
  const int stages = limits.ranks * limits.stages_per_rank;
  const StageCosts costs(counter, speeds, stages);
  const MemoryGuess memory(counter, limits);
  const auto layers = costs.layers();
  const double limit = limits.memory_bytes > 0 ? static_cast<double>(limits.memory_bytes) : kInfinite;
  const auto larger = [](double a, double b) { return std::max(a, b); };
  std::vector<std::vector<int>> cuts;
  for (const double allowed : {limit, kInfinite}) {
    const auto seconds = [&](int stage, int first, int end) {
      return memory.of(stage, first, end) > allowed ? kInfinite : costs.of(first, end).seconds;
    };
    const std::vector<int> fastest = best_cut(layers, stages, seconds, larger);
    if (fastest.empty()) continue;
    cuts.push_back(fastest);
    double slowest = 0;
    for (int stage = 0; stage < stages; ++stage) {
      slowest = std::max(slowest, costs.of(fastest[at(stage)], fastest[at(stage) + 1]).seconds);
    }
    for (const double slack : {1.0, 1.02, 1.05, 1.1, 1.2}) {
      const auto received = [&](int stage, int first, int end) {
        return seconds(stage, first, end) > slack * slowest ? kInfinite : costs.of(first, end).received;
      };
      cuts.push_back(best_cut(layers, stages, received, std::plus<>()));
    }
  }
  cuts.push_back(best_cut(
      layers, stages, [&](int stage, int first, int end) { return memory.of(stage, first, end); }, larger));
  std::erase_if(cuts, [](const std::vector<int>& cut) { return cut.empty(); });
  return cuts;
}

class Search {
 public:
  Search(const StepCounter& counter, const Speeds& speeds, const PlacementLimits& limits)
      : counter_(counter), speeds_(speeds), limits_(limits), best_(predict_step(counter, even_layout(), speeds)) {
    seen_.insert({best_.layout.boundaries().begin(), best_.layout.boundaries().end()});
  }

  PredictedStep run() {
    for (const std::vector<int>& cut : candidates(counter_, speeds_, limits_)) consider(cut);
    if (cuts() <= kFewCuts) {
      consider_all({0}, counter_.shape().model.layers);
    } else {
      while (move_boundaries()) {
      }
    }
    if (excess(best_) > 0) {
      reject_input(
          "placement: no cut of {} layers into {} stages over {} ranks fits {:.2f} GiB a rank; boundaries {} "
          "need {:.2f} GiB",
          counter_.shape().model.layers, best_.layout.stages(), limits_.ranks,
          static_cast<double>(limits_.memory_bytes) / 0x1p30, fmt::join(best_.layout.boundaries(), ","),
          static_cast<double>(best_.most_memory()) / 0x1p30);
    }
    best_.searched = searched_;
    return std::move(best_);
  }

 private:
  // As many cuts as this are all predicted.
  static constexpr double kFewCuts = 256;
  // Predicted times closer than this are equal: the fewer bytes win.
  static constexpr double kSame = 1e-3;

  StageLayout even_layout() const {
    return StageLayout::even(static_cast<int>(counter_.shape().model.layers), limits_.ranks, limits_.stages_per_rank);
  }

  std::int64_t excess(const PredictedStep& step) const {
    return limits_.memory_bytes == 0 ? 0 : std::max<std::int64_t>(0, step.most_memory() - limits_.memory_bytes);
  }

  bool is_better(const PredictedStep& a, const PredictedStep& b) const {
    if (excess(a) != excess(b)) return excess(a) < excess(b);
    // Never slower: what sends less must not take longer.
    if (a.times.makespan < (1 - kSame) * b.times.makespan) return true;
    return a.times.makespan <= b.times.makespan && a.sent_bytes() < b.sent_bytes();
  }

  bool consider(const std::vector<int>& cut) {
    if (searched_ > limits_.most_searched || !seen_.insert(cut).second) return false;
    PredictedStep step = predict_step(counter_, StageLayout(limits_.ranks, cut), speeds_);
    for (const auto& spans : step.times.spans) searched_ += std::ssize(spans);
    if (!is_better(step, best_)) return false;
    best_ = std::move(step);
    return true;
  }

  // The ways to choose the stages - 1 inner boundaries.
  double cuts() const {
    double ways = 1;
    const auto places = static_cast<double>(counter_.shape().model.layers - 1);
    for (int chosen = 0; chosen + 1 < best_.layout.stages(); ++chosen) ways *= (places - chosen) / (chosen + 1);
    return ways;
  }

  // Every cut that starts with the boundaries `begun`.
  void consider_all(std::vector<int> begun, std::int64_t layers) {
    const auto left = best_.layout.stages() - static_cast<int>(begun.size());
    if (left == 0) {
      begun.push_back(static_cast<int>(layers));
      consider(begun);
      return;
    }
    const int lowest = begun.back() + 1;
    begun.push_back(lowest);
    for (int boundary = lowest; boundary <= layers - left; ++boundary) {
      begun.back() = boundary;
      consider_all(begun, layers);
    }
  }

  // Moves runs of neighbouring boundaries by one layer, single ones first; whether that helped.
  bool move_boundaries() {
    bool moved = false;
    const int inner = best_.layout.stages() - 1;
    for (int length = 1; length <= inner; ++length) {
      for (int first = 1; first + length <= inner + 1; ++first) {
        for (const int by : {-1, 1}) moved |= consider_moved(first, length, by);
      }
    }
    return moved;
  }

  bool consider_moved(int first, int length, int by) {
    std::vector<int> cut(best_.layout.boundaries().begin(), best_.layout.boundaries().end());
    for (int boundary = first; boundary < first + length; ++boundary) cut[at(boundary)] += by;
    const bool stays_a_cut =
        cut[at(first) - 1] < cut[at(first)] && cut[at(first + length) - 1] < cut[at(first + length)];
    return stays_a_cut && consider(cut);
  }

  const StepCounter& counter_;
  const Speeds& speeds_;
  const PlacementLimits& limits_;
  PredictedStep best_;
  std::set<std::vector<int>> seen_;
  std::int64_t searched_ = 0;
};

}  // namespace

std::int64_t PredictedStep::sent_bytes() const {
  return std::accumulate(costs.bytes.begin(), costs.bytes.end(), std::int64_t{0}) +
         std::accumulate(costs.gradient_bytes.begin(), costs.gradient_bytes.end(), std::int64_t{0});
}

std::int64_t PredictedStep::most_memory() const {
  std::int64_t most = 0;
  for (const RankMemory& rank : memory) most = std::max(most, rank.total());
  return most;
}

PredictedStep predict_step(const StepCounter& counter, const StageLayout& layout, const Speeds& speeds) {
  const StepShape& shape = counter.shape();
  if (layout.layers() != shape.model.layers) {
    reject_input("placement: boundaries up to layer {} for a model of {} layers", layout.layers(), shape.model.layers);
  }
  PredictedStep step{layout, make_chunk_chain(counter.plan(), shape.model.kv_map, layout), {}, {}, {}, {}};
  step.costs = counter.count(step.chain);
  const ScheduleCosts costs = step.costs.at(speeds);
  step.schedule = make_schedule(step.chain, shape.micro_batches, shape.policy, costs);
  step.times = time_schedule(step.chain, step.schedule, costs);
  step.memory = counter.memory(layout, step.chain, step.costs, step.times);
  return step;
}

PredictedStep place_stages(const StepCounter& counter, const Speeds& speeds, const PlacementLimits& limits) {
  return Search(counter, speeds, limits).run();
}

}  // namespace kvloom
