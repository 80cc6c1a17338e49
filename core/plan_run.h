// Executes an iteration plan over one batch: forward, and backward through the passes that keep gradient (DESIGN 5).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "core/iteration_plan.h"
#include "core/kv_store.h"
#include "core/layer.h"
#include "core/model.h"

namespace kvloom {

enum class Recompute : std::uint8_t {
  kNone,  // keep every activation that backward needs
  kFull,  // keep each layer's input and K/V; compute the rest again in backward, with equal bits
};

struct PlanRunOptions {
  std::int64_t sequences;
  std::int64_t positions;  // of each sequence, from position 0 on
  // Of each sequence, the last `asked` positions have their hidden states computed to the end; 0: all.
  std::int64_t asked = 0;
  // Passes of a segment stop when the largest change of the K/V of its upward-read sources from one pass to the next,
  // relative to the largest value, falls below this; the last pass then follows. 0: never.
  float tolerance = 0;
  Recompute recompute = Recompute::kNone;
  TensorGroup* tensor = nullptr;  // the ranks that share the model's matrices, when its shard is a part
  // Called after each layer run's backward.
  std::function<void(int layer)> after_backward;
};

// Layer runs [first, end) of plan.steps[step].layers.
struct RunRange {
  std::size_t step;
  std::size_t first;
  std::size_t end;
};

// What was really run, in layers: the numbers that tests hold against the plan's.
using LayerRunTally = LayerRunCount;

class PlanRun {
 public:
  // Model and plan outlive the run; the plan is of the model's map. `rope` covers the positions.
  PlanRun(const Model& model, const IterationPlan& plan, const RopeTable& rope, const PlanRunOptions& options);

  // tokens i32 [sequences * positions]. Returns the last layer's hidden states [sequences * asked, hidden].
  Tensor forward(const Tensor& tokens);

  // After forward of a kTrain plan: from the gradient of what forward returned, all weight gradients but head's and
  // final norm's (+=). Each K/V source checks that all its readers have sent (Error naming the source otherwise).
  void backward(const Tensor& tokens, const Tensor& grad_hidden, ModelGradients& gradients);

  // The pieces that `forward` and `backward` are made of, for ranks that hold some of the layers. Hidden states are
  // [own rows, hidden].
  Tensor embed(const Tensor& tokens) const;
  // Runs the range from the hidden states `input` below it. Returns those above it, or `input` when the range was only
  // the K/V of one layer, which leaves none.
  Tensor forward_runs(const RunRange& range, const Tensor& input);
  // The gradient of forward_runs' input, from that of its result, which is overwritten; undefined: zero. Of a plan step
  // that keeps gradient, in the reverse order of forward.
  Tensor backward_runs(const RunRange& range, Tensor grad_hidden, ModelGradients& gradients);
  void embed_backward(const Tensor& tokens, const Tensor& grad_hidden, ModelGradients& gradients) const;
  // K/V that other ranks computed are put here before they are read, and dK, dV go through the gradient store.
  KvStore& store() { return store_; }
  KvGradientStore& kv_gradients() { return kv_gradients_; }

  // K/V that the last passes left; sources as the plan computed them.
  const KvStore& store() const { return store_; }
  int last_pass(int layer) const { return last_pass_.at(static_cast<std::size_t>(layer)); }

  const LayerRunTally& tally() const { return tally_; }
  // Passes run of each segment, by segment: fewer than planned when they stopped early.
  std::span<const int> passes_run() const { return passes_run_; }

 private:
  void count(const PlanStep& step, const LayerRun& run);
  bool converged(const PlanStep& step) const;
  void present_as_pass(const Segment& segment, int from, int to);
  void drop_pass(const Segment& segment, int pass);
  std::optional<KvRead> read_of(const LayerRun& run) const;
  Tensor asked_rows(const Tensor& rows) const;
  void recompute(const LayerRun& run, LayerActivations& kept) const;
  void backward_layer(const LayerRun& run, LayerActivations& kept, Tensor& grad_hidden, ModelGradients& gradients);
  bool carries_gradient(const KvName& name) const;
  // What the run's queries read of K, or V.
  KvName read_name(KvPart part, const LayerRun& run) const;
  KvGradientSums reader_sums(const LayerRun& run, const Shape& shape);

  const Model& model_;
  const IterationPlan& plan_;
  PlanRunOptions options_;
  LayerContext context_;        // of every position
  LayerContext asked_context_;  // of the asked positions
  KvStore store_;
  KvGradientStore kv_gradients_;
  std::vector<std::vector<LayerActivations>> kept_;  // by step, by run within it
  std::vector<int> last_pass_;                       // by layer: its segment's last pass
  std::vector<int> first_gradient_pass_;             // by layer
  LayerRunTally tally_;
  std::vector<int> passes_run_;
};

}  // namespace kvloom
