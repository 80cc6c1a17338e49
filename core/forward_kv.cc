// K and V of a step's rows into the pages of their source.
#include <iterator>

#include "core/forward_run.h"

namespace kvloom {

void ForwardRun::store_own(Step& step, int layer, const KeyValue& own) {
  KvMoves moves;
  store(step, layer, step.rows, own, &moves);
  share(StageMessage::kDownward, layer, own);
  if (moves.key.empty() && moves.value.empty()) return;
  join_moves(moves);
  note_moves(step, layer, moves);
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

}  // namespace kvloom
