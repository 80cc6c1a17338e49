// A step of inference on one stage of several (core/stage_links.h): rows come from the stage below and go on to the one
// above, K and V go to every stage that reads them.
//
// Within a step a stage waits only for lower ones, and while rows enter a wavefront for the guesses of higher ones,
// which these send before anything else of the step. K and V for lower stages are taken by them before their next step.
#include <algorithm>
#include <array>
#include <utility>

#include "core/forward_run.h"

namespace kvloom {
namespace {

constexpr std::int64_t kPieceNumbers = 3;  // run, rows, first position

bool crosses(const RowRun& run, int cut) {
  return run.kind == RowKind::kWavefront && run.layers.first < cut && cut < run.layers.end;
}

bool is_read_upward(const KvMap& map, int source) {
  return map.is_read_upward(KvPart::kKey, source) || map.is_read_upward(KvPart::kValue, source);
}

template <typename T>
Tensor column_of(const std::vector<T>& numbers, std::int64_t columns, Allocator& allocator) {
  return Tensor::of<T>(allocator, {std::ssize(numbers) / columns, columns}, numbers);
}

// Takes numbers off the front of a list.
class Numbers {
 public:
  explicit Numbers(std::span<const float> numbers) : numbers_(numbers) {}

  float next() {
    if (numbers_.empty()) fail("stages: a list of rows has too few numbers");
    const float number = numbers_.front();
    numbers_ = numbers_.subspan(1);
    return number;
  }
  std::vector<KvMovement> moves(std::int64_t rows) {
    std::vector<KvMovement> moves;
    for (std::int64_t row = 0; row < rows; ++row) {
      const float difference = next();
      moves.push_back({.difference = difference, .value = next()});
    }
    return moves;
  }

 private:
  std::span<const float> numbers_;
};

}  // namespace

int ForwardRun::stage_with(int layer) const { return stage_of(options_.stages->boundaries(), layer); }

StageKey ForwardRun::key_of(StageMessage message, int layer, int from, int to) const {
  return {.message = message, .step = steps_, .layer = layer, .from = from, .to = to};
}

// Rows of a source in this step: of every run whose layers it is among.
std::vector<RowPiece> ForwardRun::rows_of_source(const Step& step, int source) {
  std::vector<RowPiece> pieces;
  std::int64_t first_row = 0;
  for (std::size_t index = 0; index < step.plan.runs.size(); ++index) {
    const RowRun& run = step.plan.runs[index];
    if (source < run.layers.first || source >= run.layers.end) continue;
    pieces.push_back({.run = index, .first_row = first_row, .rows = run.rows, .first_position = run.first_position});
    first_row += run.rows;
  }
  return pieces;
}

void ForwardRun::share(StageMessage message, int source, const KeyValue& values) const {
  for (const KvEdge& edge : edges_) {
    if (edge.source != source || edge.from != options_.stages->stage()) continue;
    if (message == StageMessage::kGuess && !edge.is_upward()) continue;
    const bool goes_down = message != StageMessage::kGuess && edge.is_upward();
    std::vector<Tensor> parts;
    if (edge.has_key) parts.push_back(values.key);
    if (edge.has_value) parts.push_back(values.value);
    options_.stages->send(key_of(goes_down ? StageMessage::kUpward : message, source, edge.from, edge.to),
                          std::move(parts));
  }
}

void ForwardRun::take(const StageKey& key, const KvEdge& edge, const KvPlaces& places) {
  std::vector<StagePart> parts;
  const StagePart rows{.columns = kv_columns(), .dtype = model_.dtype()};
  if (edge.has_key) parts.push_back(rows);
  if (edge.has_value) parts.push_back(rows);
  std::vector<Tensor> came = options_.stages->receive(key, parts);
  const auto put_part = [&](KvPart part, const Tensor& tensor) {
    if (tensor.size(0) != std::ssize(places[part])) {
      fail("stages: the {} has {} rows; right are {}", describe(key), tensor.size(0), places[part].size());
    }
    put(places[part], pages_.pool(part, edge.source), tensor, nullptr);
  };
  if (edge.has_key) put_part(KvPart::kKey, came.front());
  if (edge.has_value) put_part(KvPart::kValue, came.back());
}

void ForwardRun::take_upward(std::int64_t step) {
  for (; !due_.empty() && due_.front().step <= step; due_.pop_front()) {
    const Due& due = due_.front();
    take({.message = StageMessage::kUpward,
          .step = due.step,
          .layer = due.edge.source,
          .from = due.edge.from,
          .to = due.edge.to},
         due.edge, due.places);
  }
}

// What stages above compute of this step's rows, and this one will read.
void ForwardRun::expect_upward(const Step& step) {
  for (const KvEdge& edge : edges_) {
    if (edge.to != options_.stages->stage() || !edge.is_upward()) continue;
    const std::vector<RowPiece> pieces = rows_of_source(step, edge.source);
    if (pieces.empty()) continue;
    due_.push_back({.step = steps_, .edge = edge, .places = places_of(step, edge.source, pieces)});
  }
}

// Rows of a segment that begins below and reaches into this stage; they enter its wavefronts in this step.
void ForwardRun::guess_from_below(Step& step) {
  std::vector<RowPiece> entering;
  LayerRange segment{};
  for (std::size_t index = 0; index < step.plan.runs.size(); ++index) {
    const RowRun& run = step.plan.runs[index];
    if (!crosses(run, layers_.first)) continue;
    begin_scale(run);
    if (run.entering == 0) continue;
    const RowPiece piece{.run = index, .first_row = 0, .rows = run.rows, .first_position = run.first_position};
    entering.push_back(from_position(piece, run.end_position() - run.entering));
    segment = run.layers;
  }
  if (entering.empty()) return;
  ForwardRows rows = lay_out(std::move(entering), model_.config().hidden, model_.dtype(), model_.allocator());
  if (guesses_for(segment, options_.stages->stage())) {
    const std::array<StagePart, 1> part = {StagePart{model_.config().hidden, model_.dtype()}};
    const StageKey key =
        key_of(StageMessage::kSegmentInput, segment.first, stage_with(segment.first), options_.stages->stage());
    rows.hidden = options_.stages->receive(key, part).front();
    if (rows.hidden.size(0) != rows.positions.size(0)) {
      fail("stages: the {} has {} rows", describe(key), rows.hidden.size(0));
    }
  }
  guess_sources(step, segment, rows);
}

// Whether a stage makes guesses of the segment from its input.
bool ForwardRun::guesses_for(LayerRange segment, int stage) const {
  if (options_.guess != StartingGuess::kProjection) return false;
  for (int source = segment.first; source < segment.end; ++source) {
    if (stage_with(source) == stage && is_read_upward(model_.config().kv_map, source)) return true;
  }
  return false;
}

void ForwardRun::ask_for_guesses(LayerRange segment, const ForwardRows& rows) const {
  if (options_.stages == nullptr) return;
  const int own = options_.stages->stage();
  for (int stage = own + 1; stage < options_.stages->stages(); ++stage) {
    if (!guesses_for(segment, stage)) continue;
    options_.stages->send(key_of(StageMessage::kSegmentInput, segment.first, own, stage), {rows.hidden});
  }
}

void ForwardRun::take_guess(const Step& step, int source, const ForwardRows& rows) {
  for (const KvEdge& edge : edges_) {
    if (edge.source != source || edge.to != options_.stages->stage() || !edge.is_upward()) continue;
    if (options_.guess == StartingGuess::kZeros) return guess_zeros(step, source, rows);
    take(key_of(StageMessage::kGuess, source, edge.from, edge.to), edge, places_of(step, source, rows.pieces));
  }
}

void ForwardRun::receive_rows(Step& step) {
  const int own = options_.stages->stage();
  guess_from_below(step);
  for (const KvEdge& edge : edges_) {
    if (edge.to != own || edge.is_upward()) continue;
    const std::vector<RowPiece> pieces = rows_of_source(step, edge.source);
    if (pieces.empty()) continue;
    take(key_of(StageMessage::kDownward, edge.source, edge.from, own), edge, places_of(step, edge.source, pieces));
  }
  const std::array<StagePart, 3> parts = {StagePart{kPieceNumbers, DType::kI32}, StagePart{1, DType::kI32},
                                          StagePart{1, DType::kF32}};
  const std::vector<Tensor> came =
      options_.stages->receive(key_of(StageMessage::kPieces, layers_.first, own - 1, own), parts);
  std::vector<RowPiece> pieces;
  for (std::int64_t piece = 0; piece < came[0].size(0); ++piece) {
    const auto numbers = came[0].as<std::int32_t>().subspan(static_cast<std::size_t>(piece * kPieceNumbers));
    pieces.push_back({.run = static_cast<std::size_t>(numbers[0]),
                      .first_row = 0,
                      .rows = numbers[1],
                      .first_position = numbers[2]});
  }
  step.outcome.settled.assign(came[1].as<std::int32_t>().begin(), came[1].as<std::int32_t>().end());
  step.rows = lay_out(std::move(pieces), model_.config().hidden, model_.dtype(), model_.allocator());
  take_numbers(step, came[2].as<float>());
  if (step.rows.is_empty()) return;
  const std::array<StagePart, 1> hidden = {StagePart{model_.config().hidden, model_.dtype()}};
  const StageKey key = key_of(StageMessage::kHidden, layers_.first, own - 1, own);
  Tensor rows = options_.stages->receive(key, hidden).front();
  if (rows.size(0) != step.rows.count()) fail("stages: the {} has {} rows", describe(key), rows.size(0));
  step.rows.hidden = std::move(rows);
}

// Residuals by run, then movements of the sources below, by row of the wavefronts that go on here.
void ForwardRun::take_numbers(Step& step, std::span<const float> list) const {
  Numbers numbers(list);
  for (float& residual : step.outcome.residual) residual = numbers.next();
  for (const RowPiece& piece : step.rows.pieces) {
    const RowRun& run = step.run_of(piece);
    for (int source = run.layers.first; crosses(run, layers_.first) && source < layers_.first; ++source) {
      KvMoves moves;
      for (const KvPart part : kKvParts) {
        if (model_.config().kv_map.is_read_upward(part, source)) moves[part] = numbers.moves(piece.rows);
      }
      if (moves.key.empty() && moves.value.empty()) continue;
      step.passes[piece.run].note(source, {moves.key, moves.value});
    }
  }
}

void ForwardRun::pass_on(const Step& step) {
  std::vector<std::int32_t> pieces;
  std::vector<float> numbers = step.outcome.residual;
  const auto add = [&](std::span<const KvMovement> moves) {
    for (const KvMovement& move : moves) numbers.insert(numbers.end(), {move.difference, move.value});
  };
  for (const RowPiece& piece : step.rows.pieces) {
    pieces.insert(pieces.end(), {static_cast<std::int32_t>(piece.run), static_cast<std::int32_t>(piece.rows),
                                 static_cast<std::int32_t>(piece.first_position)});
    if (!crosses(step.run_of(piece), layers_.end)) continue;
    for (const WavefrontPass::OfSource& source : step.passes[piece.run].sources()) {
      for (const KvPart part : kKvParts) add(source.moves[part]);
    }
  }
  const int own = options_.stages->stage();
  Allocator& allocator = model_.allocator();
  options_.stages->send(key_of(StageMessage::kPieces, layers_.end, own, own + 1),
                        {column_of(pieces, kPieceNumbers, allocator), column_of(step.outcome.settled, 1, allocator),
                         column_of(numbers, 1, allocator)});
  if (step.rows.is_empty()) return;
  options_.stages->send(key_of(StageMessage::kHidden, layers_.end, own, own + 1), {step.rows.hidden});
}

}  // namespace kvloom
