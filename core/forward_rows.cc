#include "core/forward_rows.h"

#include <algorithm>

#include "core/ops.h"

namespace kvloom {

ForwardRows lay_out(std::vector<RowPiece> pieces, std::int64_t hidden, DType dtype, Allocator& allocator) {
  ForwardRows rows{.pieces = std::move(pieces), .hidden = {}, .positions = {}};
  std::vector<std::int32_t> positions;
  for (RowPiece& piece : rows.pieces) {
    piece.first_row = std::ssize(positions);
    for (std::int64_t position = piece.first_position; position < piece.end_position(); ++position) {
      positions.push_back(static_cast<std::int32_t>(position));
    }
  }
  rows.hidden = Tensor::empty(allocator, {std::ssize(positions), hidden}, dtype);
  rows.positions = Tensor::of<std::int32_t>(allocator, {std::ssize(positions)}, positions);
  return rows;
}

void copy_rows(const Tensor& from, std::int64_t first, Tensor& to, std::int64_t place, std::int64_t rows) {
  if (rows == 0) return;
  Tensor target = to.rows(place, place + rows);
  ops::copy(from.rows(first, first + rows), target);
}

Tensor gather_rows(const Tensor& from, std::span<const RowPiece> pieces, Allocator& allocator) {
  std::int64_t rows = 0;
  for (const RowPiece& piece : pieces) rows += piece.rows;
  Tensor result = Tensor::empty(allocator, {rows, from.size(1)}, from.dtype());
  std::int64_t place = 0;
  for (const RowPiece& piece : pieces) {
    copy_rows(from, piece.first_row, result, place, piece.rows);
    place += piece.rows;
  }
  return result;
}

RowPiece from_position(RowPiece piece, std::int64_t position) {
  const std::int64_t skipped = std::clamp<std::int64_t>(position - piece.first_position, 0, piece.rows);
  piece.first_row += skipped;
  piece.first_position += skipped;
  piece.rows -= skipped;
  return piece;
}

RowPiece first_rows(RowPiece piece, std::int64_t rows) {
  piece.rows = std::min(piece.rows, rows);
  return piece;
}

}  // namespace kvloom
