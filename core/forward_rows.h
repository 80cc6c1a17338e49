// The rows that a forward step computes at one layer: pieces of several runs, side by side.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"

namespace kvloom {

// Rows [first_row, first_row + rows) belong to the run of this index and stand from first_position on.
struct RowPiece {
  std::size_t run;
  std::int64_t first_row;
  std::int64_t rows;
  std::int64_t first_position;

  std::int64_t end_position() const { return first_position + rows; }
};

struct ForwardRows {
  std::vector<RowPiece> pieces;
  Tensor hidden;     // [rows, hidden]
  Tensor positions;  // i32 [rows]

  bool is_empty() const { return pieces.empty(); }
  std::int64_t count() const { return hidden.defined() ? hidden.size(0) : 0; }
};

// Lays the pieces out one after the other, with room for hidden states of `dtype`; their first_row is what comes out.
ForwardRows lay_out(std::vector<RowPiece> pieces, std::int64_t hidden, DType dtype, Allocator& allocator);

// to[place, ...) = from[first, ...), `rows` rows.
void copy_rows(const Tensor& from, std::int64_t first, Tensor& to, std::int64_t place, std::int64_t rows);

// Rows that `pieces` (their first_row as in `from`) take from a tensor [.., columns], one after the other.
Tensor gather_rows(const Tensor& from, std::span<const RowPiece> pieces, Allocator& allocator);

// Of a piece the part that stands at `position` or later; it may have no rows.
RowPiece from_position(RowPiece piece, std::int64_t position);
// Of a piece the first `rows` rows.
RowPiece first_rows(RowPiece piece, std::int64_t rows);

}  // namespace kvloom
