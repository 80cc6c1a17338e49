#include "core/forward_run.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "core/ops.h"

namespace kvloom {
namespace {

constexpr std::int64_t kHeadRows = 64;  // of logits at a time

bool is_top_of_wavefront(const RowRun& run, int layer) {
  return run.kind == RowKind::kWavefront && run.layers.end == layer + 1;
}

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

void ForwardRun::leave_and_enter(Step& step, int layer) {
  const auto ends = [&](const RowPiece& piece) { return step.run_of(piece).layers.end == layer; };
  const auto begins = [&](const RowRun& run) { return run.layers.first == layer; };
  if (std::ranges::none_of(step.rows.pieces, ends) && std::ranges::none_of(step.plan.runs, begins)) return;
  std::vector<RowPiece> next;
  auto current = step.rows.pieces.begin();
  for (std::size_t index = 0; index < step.plan.runs.size(); ++index) {
    const RowRun& run = step.plan.runs[index];
    if (current != step.rows.pieces.end() && current->run == index) {
      if (ends(*current)) {
        leave(step, *current);
      } else {
        next.push_back(*current);
      }
      ++current;
    } else if (begins(run)) {
      RowPiece piece{.run = index, .first_row = -1, .rows = run.rows, .first_position = run.first_position};
      if (layer > model_.config().kv_map.last_kv_layer()) piece = from_position(piece, run.wanted_from);
      piece.first_row = -1;
      if (piece.rows > 0) next.push_back(piece);
    }
  }
  const std::vector<RowPiece> before = next;
  ForwardRows rows = lay_out(std::move(next), model_.config().hidden, model_.dtype(), model_.allocator());
  if (layer == 0) embed(step, rows.hidden);
  for (std::size_t i = 0; i < before.size() && layer > 0; ++i) {
    if (before[i].first_row < 0) {
      enter(step, rows.pieces[i], rows.hidden);
    } else {
      copy_rows(step.rows.hidden, before[i].first_row, rows.hidden, rows.pieces[i].first_row, before[i].rows);
    }
  }
  step.rows = std::move(rows);
  guess(step, layer);
}

void ForwardRun::leave(const Step& step, const RowPiece& piece) {
  const RowRun& run = step.run_of(piece);
  Kept& kept = kept_[run.slot];
  if (!kept.hidden.defined()) kept.hidden = empty(options_.block, model_.config().hidden);
  copy_rows(step.rows.hidden, piece.first_row, kept.hidden, piece.first_position - run.block_first, piece.rows);
}

void ForwardRun::enter(const Step& step, const RowPiece& piece, Tensor& hidden) {
  const RowRun& run = step.run_of(piece);
  const auto kept = kept_.find(run.slot);
  if (kept == kept_.end() || !kept->second.hidden.defined()) {
    fail("step: slot {} has no hidden states at layer {}", run.slot, run.layers.first);
  }
  copy_rows(kept->second.hidden, piece.first_position - run.block_first, hidden, piece.first_row, piece.rows);
}

// The rows of all runs that begin at layer 0: those of the step's tokens.
void ForwardRun::embed(const Step& step, Tensor& hidden) const {
  std::vector<std::int32_t> tokens = step.plan.tokens;
  const auto first = static_cast<std::int32_t>(model_.shard().vocab(model_.config()).begin);
  for (std::int32_t& token : tokens) token -= first;
  ops::packed_embedding(Tensor::of<std::int32_t>(model_.allocator(), {std::ssize(tokens)}, tokens), model_.embedding(),
                        hidden);
  if (options_.tensor != nullptr) hidden = options_.tensor->combine(std::move(hidden));
}

void ForwardRun::guess(Step& step, int layer) {
  std::vector<RowPiece> entering;
  int end = layer;
  for (const RowPiece& piece : step.rows.pieces) {
    const RowRun& run = step.run_of(piece);
    if (run.kind != RowKind::kWavefront || run.layers.first != layer) continue;
    begin_scale(run);
    if (run.entering == 0) continue;
    entering.push_back(from_position(piece, run.end_position() - run.entering));
    end = run.layers.end;
  }
  if (entering.empty()) return;
  Tensor hidden = gather_rows(step.rows.hidden, entering, model_.allocator());
  ForwardRows rows = lay_out(std::move(entering), model_.config().hidden, model_.dtype(), model_.allocator());
  rows.hidden = std::move(hidden);
  ask_for_guesses({layer, end}, rows);
  guess_sources(step, {layer, end}, rows);
}

void ForwardRun::begin_scale(const RowRun& run) {
  BlockScale& scale = kept_[run.slot].scale;
  if (run.first_position == run.block_first && run.entering == run.rows) scale.begin(run.layers.first, run.layers.end);
}

// This rank's sources first: stages below wait for them, and those above for nobody below.
void ForwardRun::guess_sources(const Step& step, LayerRange segment, const ForwardRows& rows) {
  for (int source = segment.first; source < segment.end; ++source) {
    const KvMap& map = model_.config().kv_map;
    if (!map.is_read_upward(KvPart::kKey, source) && !map.is_read_upward(KvPart::kValue, source)) continue;
    model_.shard().holds(source) ? guess_source(step, source, rows) : take_guess(step, source, rows);
  }
}

void ForwardRun::guess_source(const Step& step, int source, const ForwardRows& rows) {
  if (options_.guess == StartingGuess::kZeros) return guess_zeros(step, source, rows);
  const InferenceLayer& layer = model_.layer(source);
  const KvMap& map = model_.config().kv_map;
  KeyValue guess;
  std::vector<ops::PackedProduct> products;
  for (const KvPart part : kKvParts) {
    if (!map.is_read_upward(part, source)) continue;
    guess[part] = empty(rows.count(), kv_columns());
    products.push_back({layer.matrix(part), guess[part], layer.bias(part)});
  }
  ops::packed_linear(norm(rows.hidden, layer.attention_norm), products);
  if (guess.key.defined()) guess.key = rotated(std::move(guess.key), layer.key_norm, rows);
  store(step, source, rows, guess);
  share(StageMessage::kGuess, source, guess);
}

void ForwardRun::guess_zeros(const Step& step, int source, const ForwardRows& rows) {
  const Tensor zeros = Tensor::zeros(model_.allocator(), {rows.positions.size(0), kv_columns()}, model_.dtype());
  KeyValue guess;
  for (const KvPart part : kKvParts) {
    if (model_.config().kv_map.is_read_upward(part, source)) guess[part] = zeros;
  }
  store(step, source, rows, guess);
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

void ForwardRun::store_own(Step& step, int layer, const KeyValue& own) {
  KvMoves moves;
  store(step, layer, step.rows, own, &moves);
  share(StageMessage::kDownward, layer, own);
  if (moves.key.empty() && moves.value.empty()) return;
  join_moves(moves);
  note_moves(step, layer, moves);
}

// Whether a wavefront is under way whose rows settle by this source's K, or V.
bool ForwardRun::is_measured(const Step& step, KvPart part, int source) const {
  return options_.settling == Settling::kByTolerance && model_.config().kv_map.is_read_upward(part, source) &&
         std::ranges::any_of(step.rows.pieces,
                             [&](const RowPiece& piece) { return step.run_of(piece).kind == RowKind::kWavefront; });
}

void ForwardRun::join_moves(KvMoves& moves) const {
  if (options_.tensor == nullptr) return;
  std::vector<float> numbers;
  for (const KvPart part : kKvParts) {
    for (const KvMovement& move : moves[part]) numbers.insert(numbers.end(), {move.difference, move.value});
  }
  Tensor joined = Tensor::of<float>(model_.allocator(), {std::ssize(numbers)}, numbers);
  options_.tensor->maximum(joined);
  auto number = joined.as<float>().begin();
  for (const KvPart part : kKvParts) {
    for (KvMovement& move : moves[part]) {
      move.difference = *number++;
      move.value = *number++;
    }
  }
}

void ForwardRun::note_moves(Step& step, int source, const KvMoves& moves) const {
  for (const RowPiece& piece : step.rows.pieces) {
    const RowRun& run = step.run_of(piece);
    if (run.kind != RowKind::kWavefront) continue;
    ByPart<std::span<const KvMovement>> of_piece;
    for (const KvPart part : kKvParts) {
      if (moves[part].empty()) continue;
      of_piece[part] = std::span(moves[part])
                           .subspan(static_cast<std::size_t>(piece.first_row), static_cast<std::size_t>(piece.rows));
    }
    step.passes[piece.run].note(source, of_piece);
  }
}

std::int64_t ForwardRun::settle(Step& step, const RowPiece& piece) {
  const RowRun& run = step.run_of(piece);
  if (options_.settling == Settling::kForced) return step.outcome.settled[piece.run] = run.forced;
  WavefrontPass& pass = step.passes[piece.run];
  pass.measure(kept_.at(run.slot).scale);
  const std::int64_t settled = pass.settled(options_.tolerance);
  step.outcome.settled[piece.run] = static_cast<std::int32_t>(settled);
  const std::int64_t all = std::max<std::int64_t>(settled, run.forced);
  step.outcome.residual[piece.run] = pass.residual(all);
  pass.settle(all, kept_.at(run.slot).scale);
  return all;
}

// Whether only some rows go on above the K and V of `layer`.
bool ForwardRun::narrows(const Step& step, int layer) const {
  const bool is_last = layer == model_.config().kv_map.last_kv_layer();
  return std::ranges::any_of(step.rows.pieces, [&](const RowPiece& piece) {
    const RowRun& run = step.run_of(piece);
    return is_top_of_wavefront(run, layer) || (is_last && piece.first_position < run.wanted_from);
  });
}

void ForwardRun::narrow(Step& step, int layer, Tensor& normed) {
  std::vector<RowPiece> next;
  for (RowPiece piece : step.rows.pieces) {
    const RowRun& run = step.run_of(piece);
    if (is_top_of_wavefront(run, layer)) piece = first_rows(piece, settle(step, piece));
    if (layer == model_.config().kv_map.last_kv_layer()) piece = from_position(piece, run.wanted_from);
    if (piece.rows > 0) next.push_back(piece);
  }
  Tensor hidden = gather_rows(step.rows.hidden, next, model_.allocator());
  normed = gather_rows(normed, next, model_.allocator());
  step.rows = lay_out(std::move(next), model_.config().hidden, model_.dtype(), model_.allocator());
  step.rows.hidden = std::move(hidden);
}

// In the first pass over a whole text there is nothing yet to read from above, and who does so reads nothing.
bool ForwardRun::reads_nothing(const RowRun& run, int layer) const {
  return options_.settling == Settling::kForced && run.kind == RowKind::kWavefront && run.entering == run.rows &&
         model_.config().kv_map.reads_upward(layer);
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

void ForwardRun::store(const Step& step, int source, const ForwardRows& rows, const KeyValue& values, KvMoves* moves) {
  const KvPlaces places = places_of(step, source, rows.pieces);
  for (const KvPart part : kKvParts) {
    if (!values[part].defined() || !pages_.keeps(part, source)) continue;
    const bool measured = moves != nullptr && is_measured(step, part, source);
    put(places[part], pages_.pool(part, source), values[part], measured ? &(*moves)[part] : nullptr);
  }
}

void ForwardRun::put(std::span<const std::int64_t> places, const KvPool& pool, const Tensor& input,
                     std::vector<KvMovement>* moves) const {
  if (moves != nullptr) moves->resize(places.size());
  cpu::run(StoreKvRows{.input = input.data(),
                       .dtype = input.dtype(),
                       .pool = pool,
                       .rows = std::ssize(places),
                       .kv_heads = pages_.options().kv_heads,
                       .head_dim = model_.config().head_dim,
                       .places = places.data(),
                       .movement = moves == nullptr ? nullptr : moves->data()});
}

ForwardRun::KvPlaces ForwardRun::places_of(const Step& step, int source, std::span<const RowPiece> pieces) const {
  KvPlaces places;
  if (pages_.keeps(KvPart::kKey, source)) {
    places.key = places_in_group(step, pages_.group_of(KvPart::kKey, source), pieces);
  }
  if (!pages_.keeps(KvPart::kValue, source)) return places;
  const int group = pages_.group_of(KvPart::kValue, source);
  const bool is_same = !places.key.empty() && group == pages_.group_of(KvPart::kKey, source);
  places.value = is_same ? places.key : places_in_group(step, group, pieces);
  return places;
}

std::vector<std::int64_t> ForwardRun::places_in_group(const Step& step, int group,
                                                      std::span<const RowPiece> pieces) const {
  const std::int64_t page_size = pages_.options().page_size;
  std::vector<std::int64_t> places;
  for (const RowPiece& piece : pieces) {
    const std::int32_t* pages = step.tables.of(step.run_of(piece).slot, group);
    for (std::int64_t position = piece.first_position; position < piece.end_position(); ++position) {
      places.push_back(pages[position / page_size] * page_size + position % page_size);
    }
  }
  return places;
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
