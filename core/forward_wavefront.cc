// Wavefronts in a step: K and V that are read upward begin as guesses, how they move is noted by row, and by that the
// leading rows settle (core/wavefront.h).
#include <algorithm>
#include <utility>

#include "core/forward_run.h"
#include "core/ops.h"

namespace kvloom {

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

// In the first pass over a whole text there is nothing yet to read from above, and who does so reads nothing.
bool ForwardRun::reads_nothing(const RowRun& run, int layer) const {
  return options_.settling == Settling::kForced && run.kind == RowKind::kWavefront && run.entering == run.rows &&
         model_.config().kv_map.reads_upward(layer);
}

}  // namespace kvloom
