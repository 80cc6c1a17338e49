#include "core/plan_run.h"

#include <algorithm>
#include <utility>

namespace kvloom {
namespace {

std::int64_t asked_positions(const PlanRunOptions& options) {
  return options.asked == 0 ? options.positions : options.asked;
}

LayerContext make_context(const Model& model, const RopeTable& rope, const PlanRunOptions& options,
                          std::int64_t positions) {
  return {.config = model.config(),
          .shard = model.shard(),
          .rope = rope,
          .allocator = model.allocator(),
          .dtype = model.dtype(),
          .sequences = options.sequences,
          .positions = positions,
          .first_position = options.positions - positions,
          .tensor = options.tensor};
}

}  // namespace

PlanRun::PlanRun(const Model& model, const IterationPlan& plan, const RopeTable& rope, const PlanRunOptions& options)
    : model_(model),
      plan_(plan),
      options_(options),
      context_(make_context(model, rope, options, options.positions)),
      asked_context_(make_context(model, rope, options, asked_positions(options))),
      kv_gradients_(model.allocator()),
      kept_(plan.steps.size()),
      last_pass_(static_cast<std::size_t>(model.config().layers), 0),
      first_gradient_pass_(static_cast<std::size_t>(model.config().layers), 0),
      passes_run_(plan.segments.size(), 0) {
  if (options.asked < 0 || options.asked > options.positions) {
    fail("plan run: {} positions asked of {}", options.asked, options.positions);
  }
  for (auto step = plan.steps.rbegin(); step != plan.steps.rend(); ++step) {
    const Segment& segment = plan.segments[static_cast<std::size_t>(step->segment)];
    for (int layer = segment.first; layer <= segment.last; ++layer) {
      if (step->last) last_pass_[static_cast<std::size_t>(layer)] = step->pass;
      if (step->keeps_gradient) first_gradient_pass_[static_cast<std::size_t>(layer)] = step->pass;
    }
  }
}

Tensor PlanRun::embed(const Tensor& tokens) const {
  Tensor hidden = Tensor::empty(context_.allocator, {context_.rows(), context_.config.hidden}, context_.dtype);
  ops::embedding(tokens, model_.weights().embedding, context_.shard.vocab(context_.config).begin, hidden);
  return context_.tensor == nullptr ? hidden : context_.tensor->combine(std::move(hidden));
}

Tensor PlanRun::forward(const Tensor& tokens) {
  Tensor hidden = embed(tokens);
  bool settled = false;  // this segment's passes have stopped early: only its last one follows
  for (std::size_t index = 0; index < plan_.steps.size(); ++index) {
    const PlanStep& step = plan_.steps[index];
    const Segment& segment = plan_.segments[static_cast<std::size_t>(step.segment)];
    if (settled && !step.last) continue;
    Tensor output = forward_runs({index, 0, step.layers.size()}, hidden);
    ++passes_run_[static_cast<std::size_t>(step.segment)];
    if (step.last) {
      hidden = std::move(output);
      settled = false;
      continue;
    }
    if (converged(step)) {
      present_as_pass(segment, step.pass, last_pass_[static_cast<std::size_t>(segment.first)] - 1);
      settled = true;
    }
    if (!step.keeps_gradient) drop_pass(segment, step.pass - 1);
  }
  return hidden;
}

Tensor PlanRun::forward_runs(const RunRange& range, const Tensor& input) {
  const PlanStep& step = plan_.steps[range.step];
  std::vector<LayerActivations>& kept = kept_[range.step];
  if (step.keeps_gradient) kept.resize(step.layers.size());
  // An earlier segment may have left only the asked positions.
  const LayerContext* context = input.size(0) == context_.own_rows() ? &context_ : &asked_context_;
  Tensor hidden = input;
  for (std::size_t i = range.first; i < range.end; ++i) {
    const LayerRun& run = step.layers[i];
    const LayerWeights& weights = model_.weights().layers[static_cast<std::size_t>(run.layer)];
    if (step.keeps_gradient) kept[i] = {.input = hidden};
    const bool keeps_all = step.keeps_gradient && options_.recompute == Recompute::kNone;
    LayerActivations* activations = keeps_all ? &kept[i] : nullptr;
    count(step, run);
    Tensor normed;
    if (run.needs_norm()) normed = layer_attention_norm(*context, weights, hidden, activations);
    for (const KvPart part : kKvParts) {
      if (!run.computes(part)) continue;
      store_.put({part, run.layer, run.pass}, layer_key_value(*context, weights, part, normed, activations));
    }
    if (run.block == BlockWork::kNone) continue;
    if (run.positions == Positions::kAsked && context == &context_ && asked_context_.positions != context_.positions) {
      hidden = asked_rows(hidden);
      if (normed.defined()) normed = asked_rows(normed);
      context = &asked_context_;
    }
    hidden = layer_block(*context, run.layer, weights, hidden, normed, read_of(run), activations);
  }
  return hidden;
}

void PlanRun::count(const PlanStep& step, const LayerRun& run) {
  if (run.block == BlockWork::kNone) {
    ++tally_.key_value_only;
    if (step.keeps_gradient) ++tally_.key_value_only_with_gradient;
    return;
  }
  ++tally_.blocks;
  if (step.keeps_gradient) ++tally_.blocks_with_gradient;
  if (run.attention == AttentionWork::kNone) ++tally_.without_attention;
  if (run.positions == Positions::kAsked) ++tally_.asked_only;
}

// The change against the pass before. Pass 0 has nothing to compare with: its K/V came from zeros.
bool PlanRun::converged(const PlanStep& step) const {
  if (options_.tolerance <= 0 || step.pass == 0) return false;
  const Segment& segment = plan_.segments[static_cast<std::size_t>(step.segment)];
  const KvMap& map = context_.config.kv_map;
  for (int source = segment.first; source <= segment.last; ++source) {
    for (const KvPart part : kKvParts) {
      if (!map.is_read_upward(part, source)) continue;
      const ops::Change change =
          ops::max_change(store_.at({part, source, step.pass}), store_.at({part, source, step.pass - 1}));
      if (!(change.largest_difference <= options_.tolerance * change.largest_value)) return false;
    }
  }
  return true;
}

// Gives the K/V of pass `from` the place of pass `to`, where the segment's last pass reads.
void PlanRun::present_as_pass(const Segment& segment, int from, int to) {
  if (from == to) return;
  for (int source = segment.first; source <= segment.last; ++source) {
    for (const KvPart part : kKvParts) {
      if (store_.contains({part, source, from})) store_.put({part, source, to}, store_.at({part, source, from}));
    }
  }
}

void PlanRun::drop_pass(const Segment& segment, int pass) {
  for (int source = segment.first; source <= segment.last; ++source) {
    for (const KvPart part : kKvParts) store_.drop({part, source, pass});
  }
}

std::optional<KvRead> PlanRun::read_of(const LayerRun& run) const {
  if (run.attention == AttentionWork::kNone) return std::nullopt;
  const KeyValue source{store_.at(read_name(KvPart::kKey, run)), store_.at(read_name(KvPart::kValue, run))};
  return KvRead{source, options_.positions};
}

KvName PlanRun::read_name(KvPart part, const LayerRun& run) const {
  return {part, context_.config.kv_map.source(part, run.layer), run.read_pass[part]};
}

Tensor PlanRun::asked_rows(const Tensor& rows) const {
  const std::int64_t asked = asked_context_.positions;
  Tensor result = Tensor::empty(context_.allocator, {options_.sequences * asked, rows.size(1)}, rows.dtype());
  for (std::int64_t sequence = 0; sequence < options_.sequences; ++sequence) {
    const std::int64_t end = (sequence + 1) * options_.positions;
    Tensor target = result.rows(sequence * asked, (sequence + 1) * asked);
    ops::copy(rows.rows(end - asked, end), target);
  }
  return result;
}

}  // namespace kvloom
