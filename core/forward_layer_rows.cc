// Which rows a layer of a step computes: runs that end below it leave, those that begin with it enter, and above its K
// and V fewer may go on.
#include <algorithm>
#include <utility>

#include "core/forward_run.h"
#include "core/ops.h"

namespace kvloom {
namespace {

bool is_top_of_wavefront(const RowRun& run, int layer) {
  return run.kind == RowKind::kWavefront && run.layers.end == layer + 1;
}

}  // namespace

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

}  // namespace kvloom
