#include "core/forward_run.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/ops.h"

namespace kvloom {
namespace {

constexpr std::int64_t kHeadRows = 64;  // of logits at a time

}  // namespace

ForwardRun::ForwardRun(const InferenceModel& model, KvPages& pages, const ForwardOptions& options)
    : model_(model),
      pages_(pages),
      options_(options),
      layers_(model.shard().layers.front()),
      rope_(make_rope_table(model.config(), options.context, model.allocator())) {
  if (options.stages != nullptr) edges_ = kv_edges(model.config().kv_map, options.stages->boundaries());
}

StepOutcome ForwardRun::run(const StepRows& rows, const PageTables& tables) {
  ++steps_;
  Step step = begin(rows, tables);
  if (layers_.first > 0) receive_rows(step);
  for (int layer = layers_.first; layer < layers_.end; ++layer) {
    leave_and_enter(step, layer);
    if (!step.rows.is_empty()) compute(step, layer);
  }
  expect_upward(step);
  if (layers_.end < model_.config().layers) {
    pass_on(step);
  } else {
    wanted_ = step.rows.hidden;
  }
  return std::move(step.outcome);
}

void ForwardRun::logits(const LogitsSink& sink) {
  const std::int64_t count = wanted();
  for (std::int64_t first = 0; first < count; first += kHeadRows) {
    const std::int64_t rows = std::min(kHeadRows, count - first);
    const Tensor normed = norm(wanted_.rows(first, first + rows), model_.final_norm());
    Tensor logits = Tensor::empty(model_.allocator(), {rows, model_.head().outputs()}, DType::kF32);
    const ops::PackedProduct product{model_.head(), logits};
    ops::packed_linear(normed, std::span(&product, 1));
    sink(first, options_.tensor == nullptr ? logits : of_all_ranks(logits));
  }
}

// Logits of the whole vocabulary, from each tensor rank's part of it.
Tensor ForwardRun::of_all_ranks(const Tensor& part) const {
  const AxisPart columns = model_.shard().vocab(model_.config());
  Tensor all = Tensor::zeros(model_.allocator(), {part.size(0), model_.config().vocab}, DType::kF32);
  for (std::int64_t row = 0; row < part.size(0); ++row) {
    const auto from = part.as<float>().subspan(static_cast<std::size_t>(row * columns.size()),
                                               static_cast<std::size_t>(columns.size()));
    std::ranges::copy(from, all.as<float>().begin() + row * model_.config().vocab + columns.begin);
  }
  options_.tensor->sum(all);
  return all;
}

ForwardRun::Step ForwardRun::begin(const StepRows& plan, const PageTables& tables) {
  Step step{.plan = plan, .tables = tables, .first_token = {}, .passes = {}, .rows = {}, .outcome = {}};
  step.passes.resize(plan.runs.size());
  std::int64_t tokens = 0;
  for (const RowRun& run : plan.runs) {
    check(run);
    step.first_token.push_back(tokens);
    if (run.layers.first == 0) tokens += run.rows;
    step.outcome.settled.push_back(run.rows);
    step.outcome.residual.push_back(0);
    if (run.kind == RowKind::kDecode) kept_.erase(run.slot);
  }
  if (tokens != std::ssize(plan.tokens)) fail("step: {} tokens for {} rows", plan.tokens.size(), tokens);
  return step;
}

void ForwardRun::check(const RowRun& run) const {
  const std::int64_t layers = model_.config().layers;
  const bool fits = run.rows > 0 && run.first_position >= 0 && run.end_position() <= options_.context &&
                    run.layers.first >= 0 && run.layers.first < run.layers.end && run.layers.end <= layers;
  const bool hands_on = run.layers.first > 0 || run.layers.end < layers;
  const bool in_block = run.first_position >= run.block_first && run.end_position() <= run.block_first + options_.block;
  if (fits && (in_block || !hands_on)) return;
  fail(
      "step: positions [{}, {}) by layers [{}, {}) in a block from {} on; right is a context of {}, {} layers, blocks "
      "of {}",
      run.first_position, run.end_position(), run.layers.first, run.layers.end, run.block_first, options_.context,
      layers, options_.block);
}

void ForwardRun::compute(Step& step, int index) {
  const InferenceLayer& layer = model_.layer(index);
  Tensor normed = norm(step.rows.hidden, layer.attention_norm);
  const Tensor query = queries_of(step, index, normed);
  if (step.rows.is_empty()) return;
  layer_rows_ += step.rows.count();
  Tensor& hidden = step.rows.hidden;
  add_product(attend(step, index, query), layer.output, hidden);
  Tensor gate_up = empty(hidden.size(0), layer.gate_up.outputs());
  const ops::PackedProduct product{layer.gate_up, gate_up};
  ops::packed_linear(norm(hidden, layer.ffn_norm), std::span(&product, 1));
  Tensor activation = empty(hidden.size(0), layer.down.shape().inputs);
  ops::swiglu(gate_up, activation);
  add_product(activation, layer.down, hidden);
}

Tensor ForwardRun::queries_of(Step& step, int index, Tensor& normed) {
  const InferenceLayer& layer = model_.layer(index);
  const bool narrowing = model_.config().kv_map.is_kv_layer(index) && narrows(step, index);
  std::vector<ops::PackedProduct> products;
  Tensor query;
  KeyValue own;
  const auto add = [&](const PackedWeight& weight, const Tensor& bias, Tensor& output) {
    output = empty(normed.size(0), weight.outputs());
    products.push_back({weight, output, bias});
  };
  if (!narrowing) add(layer.query, layer.query_bias, query);
  if (layer.key.defined()) add(layer.key, layer.key_bias, own.key);
  if (layer.value.defined()) add(layer.value, layer.value_bias, own.value);
  ops::packed_linear(normed, products);
  if (own.key.defined()) own.key = rotated(std::move(own.key), layer.key_norm, step.rows);
  store_own(step, index, own);
  if (narrowing) {
    narrow(step, index, normed);
    if (step.rows.is_empty()) return {};
    products.clear();
    add(layer.query, layer.query_bias, query);
    ops::packed_linear(normed, products);
  }
  return rotated(std::move(query), layer.query_norm, step.rows);
}

Tensor ForwardRun::attend(const Step& step, int layer, const Tensor& query) {
  const ModelConfig& config = model_.config();
  const int key_source = config.kv_map.source(KvPart::kKey, layer);
  const int value_source = config.kv_map.source(KvPart::kValue, layer);
  const ByPart<int> groups{pages_.group_of(KvPart::kKey, key_source), pages_.group_of(KvPart::kValue, value_source)};
  std::vector<SequenceRows> sequences;
  for (const RowPiece& piece : step.rows.pieces) {
    const std::int32_t slot = step.run_of(piece).slot;
    if (reads_nothing(step.run_of(piece), layer)) continue;
    sequences.push_back({.first_row = piece.first_row,
                         .rows = piece.rows,
                         .first_position = piece.first_position,
                         .pages = step.tables.of(slot, groups.key),
                         .value_pages = groups.value == groups.key ? nullptr : step.tables.of(slot, groups.value)});
  }
  const bool all_read = sequences.size() == step.rows.pieces.size();
  Tensor output =
      all_read ? empty(query.size(0), query.size(1)) : Tensor::zeros(model_.allocator(), query.shape(), query.dtype());
  if (sequences.empty()) return output;
  cpu::run(RaggedAttention{.sequences = sequences,
                           .query = query.data(),
                           .key = pages_.pool(KvPart::kKey, key_source),
                           .value = pages_.pool(KvPart::kValue, value_source),
                           .output = output.data(),
                           .heads = query.size(1) / config.head_dim,
                           .kv_heads = pages_.options().kv_heads,
                           .head_dim = config.head_dim,
                           .page_size = pages_.options().page_size,
                           .visibility = config.kv_map.visibility(layer),
                           .window = config.kv_map.window(layer),
                           .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
                           .dtype = model_.dtype()});
  return output;
}

Tensor ForwardRun::norm(const Tensor& hidden, const Tensor& gain) const {
  Tensor result = Tensor::empty(model_.allocator(), hidden.shape(), hidden.dtype());
  Tensor no_scale;
  ops::rms_norm(hidden, gain, model_.config().norm_epsilon, result, no_scale);
  return result;
}

// Queries or keys [rows, heads * head_dim], normed by head where there is a gain, and rotated.
Tensor ForwardRun::rotated(Tensor heads, const Tensor& gain, const ForwardRows& rows) const {
  if (gain.defined()) heads = norm(heads, gain);
  ops::rope(heads, rope_.cosine, rope_.sine, {.positions = 1, .starts = &rows.positions}, Rotation::kForward);
  return heads;
}

Tensor ForwardRun::empty(std::int64_t rows, std::int64_t columns) const {
  return Tensor::empty(model_.allocator(), {rows, columns}, model_.dtype());
}

// hidden += input weight^T, the sum over the ranks that split the product.
void ForwardRun::add_product(const Tensor& input, const PackedWeight& weight, Tensor& hidden) const {
  if (options_.tensor == nullptr) {
    const ops::PackedProduct product{weight, hidden, {}, hidden};
    return ops::packed_linear(input, std::span(&product, 1));
  }
  Tensor partial = empty(hidden.size(0), weight.outputs());
  const ops::PackedProduct product{weight, partial};
  ops::packed_linear(input, std::span(&product, 1));
  ops::add(hidden, options_.tensor->combine(std::move(partial)), hidden);
}

}  // namespace kvloom
